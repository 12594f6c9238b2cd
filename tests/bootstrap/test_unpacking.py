"""What bootstrap.py takes for a package, and that nothing else is unpacked or run."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import bootstrap

from .conftest import Place, archive_of, manifest_digest

FILES: dict[str, str | bytes] = {"train.py": "print('ran')", "data/ü \n'x'": b"\0\xff" * 3}
Add = Callable[[tarfile.TarFile], None]


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: object) -> Add:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return lambda tar: tar.addfile(info, io.BytesIO(content))


def packed(*members: Add) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member("train.py", content=b"print('ran')")(tar)
        for add in members:
            add(tar)
    return gzip.compress(buffer.getvalue(), mtime=0)


def test_the_digest_is_the_one_that_the_design_defines(tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    archive.write_bytes(archive_of({"b": "2", "a/é": "1"}))
    # sha256sum of: orchestrate package 1 / 644 <sha256 of 1> 4:a/é / 644 <sha256 of 2> 1:b
    assert bootstrap.unpack(archive, tmp_path / "code") == GOLDEN
    assert (tmp_path / "code/a/é").read_text() == "1"


GOLDEN = "eee3a5361d76fca6d37cf695b275c19fc48b9ce254f8db87ecefbcb3f15c686f"


def test_files_keep_their_mode_whatever_the_umask_is(place: Place) -> None:
    script = "import os; print(oct(os.stat('train.py').st_mode), oct(os.stat('sub/x').st_mode))"
    digest_lines = {"train.py": ("755", script), "sub/x": ("644", "")}
    with_modes = packed_with_modes(digest_lines)
    place.lay_out({"train.py": script, "sub/x": ""}, archive=with_modes, package_digest=digest_of_modes(digest_lines))
    process = place.start(preexec_fn=lambda: os.umask(0o077))
    ended = place.ended(process)
    assert (ended.out, ended.err.count("error")) == (b"0o100755 0o100644\n", 0)


def packed_with_modes(files: dict[str, tuple[str, str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (mode, text) in files.items():
            member(name, content=text.encode(), mode=int(mode, 8))(tar)
    return gzip.compress(buffer.getvalue())


def digest_of_modes(files: dict[str, tuple[str, str]]) -> str:
    text = "orchestrate package 1\n"
    for name, (mode, content) in sorted(files.items()):
        text += f"{mode} {hashlib.sha256(content.encode()).hexdigest()} {len(name)}:{name}\n"
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_package_with_another_digest_is_not_run(place: Place) -> None:
    place.lay_out(FILES, archive=archive_of({**FILES, "data/ü \n'x'": b"changed"}))
    ended = place.ended(place.start())
    assert (ended.code, ended.out) == (2, b"")
    assert ended.failure is not None
    assert ended.failure.startswith("the package is not the one submitted: its digest is ")
    assert ended.err == f"[orchestrate] error: {ended.failure}\n"
    assert not (place.root / "code").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"train.py": "print('ran')"},
        {**FILES, "more": ""},
        {"train.py": "print('ran')", "data/u \n'x'": b"\0\xff" * 3},
    ],
    ids=["a file less", "a file more", "another name"],
)
def test_any_change_changes_the_digest(place: Place, changed: dict[str, str | bytes]) -> None:
    ended = place.run(changed, package_digest=manifest_digest(FILES))
    assert (ended.code, ended.out) == (2, b"")


def test_a_package_without_its_script_ends_with_2(place: Place) -> None:
    ended = place.run(FILES, script="other.py")
    assert (ended.code, ended.out) == (2, b"")
    assert ended.failure is not None
    assert "other.py" in ended.failure


HOSTILE: dict[str, tuple[Add, ...]] = {
    "parent folder": (member("../escape"),),
    "parent folder inside": (member("a/../../escape"),),
    "absolute": (member("/tmp/escape-orchestrate-test"),),
    "here": (member("./train2.py"),),
    "empty part": (member("a//b"),),
    "NUL": (member("train.py\0.txt", pax_headers={"path": "train.py\0.txt"}),),
    "symbolic link": (member("link", tarfile.SYMTYPE, linkname="/etc/passwd"),),
    "symbolic link, then through it": (member("d", tarfile.SYMTYPE, linkname=".."), member("d/escape")),
    "hard link": (member("link", tarfile.LNKTYPE, linkname="train.py"),),
    "device": (member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),),
    "block device": (member("disk", tarfile.BLKTYPE),),
    "pipe": (member("fifo", tarfile.FIFOTYPE),),
    "contiguous file": (member("c", tarfile.CONTTYPE),),
    "sparse file": (member("s", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "50"}, content=b"x"),),
    "unknown kind": (member("u", b"Z"),),
    "twice": (member("train.py", content=b"print('other')"),),
    "folder twice": (member("d", tarfile.DIRTYPE), member("d", tarfile.DIRTYPE)),
    "file as folder": (member("train.py/x"),),
    "folder as file": (member("d/x"), member("d")),
    "set-uid": (member("s", mode=0o4755),),
    "writable by all": (member("s", mode=0o777),),
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path: Path, members: tuple[Add, ...]) -> None:
    archive, folder = tmp_path / "package.tar.gz", tmp_path / "in" / "code"
    folder.parent.mkdir()
    archive.write_bytes(packed(*members))
    with pytest.raises(bootstrap.NotStarted) as refusal:
        bootstrap.unpack(archive, folder)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["in", "package.tar.gz", "code", *(path.name for path in folder.rglob("*"))]
    )
    assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in (p.lstat().st_mode for p in folder.rglob("*")))


def test_a_hostile_package_ends_the_run_before_its_script(place: Place) -> None:
    ended = place.run(FILES, archive=packed(*HOSTILE["symbolic link"]))
    assert (ended.code, ended.out) == (2, b"")
    assert ended.failure == "the package's 'link' is neither a folder nor a file of mode 644 or 755"


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MOST_BYTES_ANYWAY", 1_000_000)
    archive = tmp_path / "package.tar.gz"
    archive.write_bytes(packed(member("zeros", content=bytes(20_000_000))))
    with pytest.raises(bootstrap.NotStarted, match="200 times its archive"):
        bootstrap.unpack(archive, tmp_path / "code")
    assert not (tmp_path / "code/zeros").exists()


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MOST_MEMBERS", 10)
    archive = tmp_path / "package.tar.gz"
    archive.write_bytes(packed(*[member(str(n)) for n in range(10)]))
    with pytest.raises(bootstrap.NotStarted, match="over 10 files"):
        bootstrap.unpack(archive, tmp_path / "code")


@pytest.mark.parametrize("kept", [0, 1, 10, 50, 100])
def test_a_truncated_archive_is_refused(place: Place, kept: int) -> None:
    ended = place.run(FILES, archive=archive_of(FILES)[:kept])
    assert (ended.code, ended.out) == (2, b"")


def test_bytes_behind_the_archive_do_not_matter(place: Place) -> None:
    assert place.run(FILES, archive=archive_of(FILES) + b"junk").code == 0


NAMES = st.text(st.sampled_from("ab./\\\0\n é"), min_size=1, max_size=12)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
MEMBERS = st.lists(
    st.tuples(NAMES, KINDS, st.binary(max_size=20), NAMES, st.sampled_from([0o644, 0o755, 0o4755, 0])), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(members=MEMBERS, flips=st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), max_size=4))
def test_no_archive_writes_outside_its_folder(
    members: list[tuple[str, bytes, bytes, str, int]], flips: list[tuple[int, int]]
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content, target, mode in members:
            member(name, kind, content if kind == tarfile.REGTYPE else b"", linkname=target, mode=mode)(tar)
    raw = bytearray(buffer.getvalue())
    for position, value in flips:
        raw[position % len(raw)] = value
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)
        (outside / "package.tar.gz").write_bytes(gzip.compress(bytes(raw), 1))
        with contextlib.suppress(bootstrap.NotStarted, OSError):
            bootstrap.unpack(outside / "package.tar.gz", outside / "code")
        assert sorted(path.name for path in outside.iterdir()) == ["code", "package.tar.gz"]
        modes = [path.lstat().st_mode for path in (outside / "code").rglob("*")]
        assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in modes)
