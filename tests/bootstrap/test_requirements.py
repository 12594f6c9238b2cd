"""A package's requirements.txt: nothing is installed twice, and nothing into the user's own environment."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator import bootstrap

from .conftest import Place

OFFLINE = "--no-index\n--find-links wheels\n"
# pip, as others have it, warns of its own deprecations.
QUIET = {"PYTHONWARNINGS": "", "PIP_CONFIG_FILE": "/dev/null"}


def wheel(name: str, version: str, requires: str = "") -> dict[str, str | bytes]:
    """A file of a package's wheels folder: *name*, one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-tool = {name}:print\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return {f"wheels/{name}-{version}-py3-none-any.whl": buffer.getvalue()}


def contents(folder: Path) -> str:
    """One digest of all names and sizes below *folder*."""
    paths = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return hashlib.sha256("\n".join(f"{path} {path.lstat().st_size}" for path in paths).encode()).hexdigest()


@pytest.mark.slow
def test_where_nothing_is_missing_nothing_is_installed(place: Place) -> None:
    place.lay_out({"train.py": "import sys; print(sys.executable)", "requirements.txt": "psutil>=5\npytest\n"})
    ended = place.ended(place.start(env=QUIET))
    assert (ended.code, ended.out.decode().strip(), ended.err.count("\n")) == (0, sys.executable, 2)


@pytest.mark.slow
def test_what_is_missing_goes_into_an_overlay_and_not_into_the_users_environment(place: Place) -> None:
    script = """
        import shutil, sys
        import psutil, pytest, tiny_orchestrate_test
        print(sys.prefix, tiny_orchestrate_test.__version__, psutil.__version__, pytest.__name__)
        print(shutil.which("tiny_orchestrate_test-tool"))
    """
    place.lay_out(
        {
            "train.py": script,
            "requirements.txt": OFFLINE + "tiny_orchestrate_test\npsutil==99.0\npytest\n",
            **wheel("tiny_orchestrate_test", "1.5"),
            **wheel("psutil", "99.0"),
        }
    )
    site_packages = Path(pytest.__file__).parents[1]
    before = contents(site_packages / "psutil"), sorted(path.name for path in site_packages.iterdir())
    ended = place.ended(place.start(env=QUIET))
    assert (ended.code, ended.failure) == (0, None), ended.err
    venv = place.root / "venv"
    assert ended.out.decode().split("\n")[:2] == [
        f"{venv} 1.5 99.0 pytest",
        str(venv / "bin/tiny_orchestrate_test-tool"),
    ]
    assert before == (contents(site_packages / "psutil"), sorted(path.name for path in site_packages.iterdir()))


def test_what_cannot_be_installed_ends_the_run_with_pips_words(place: Place) -> None:
    files: dict[str, str | bytes] = {
        "train.py": "print('ran')",
        "requirements.txt": OFFLINE + "no_such_package_1==2.0\n",
    }
    place.lay_out(files)
    ended = place.ended(place.start(env=QUIET))
    assert (ended.code, ended.out) == (2, b"")
    assert ended.failure is not None
    assert ended.failure.startswith("cannot install requirements.txt\n")
    assert "No matching distribution found for no_such_package_1==2.0" in ended.failure


@pytest.mark.slow
def test_in_a_container_the_root_is_opt_ml_and_packages_go_into_its_own_environment(
    place: Place, namespaces: list[str], tmp_path: Path
) -> None:
    if any(path.startswith("/opt") for path in (sys.prefix, sys.base_prefix, str(tmp_path))):
        pytest.skip("Python itself lives in /opt")
    python = bootstrap.make_overlay(tmp_path / "container")
    script = "import os, sys, tiny_orchestrate_test; print(sys.prefix, os.environ['SM_MODEL_DIR'], os.getcwd())"
    place.lay_out(
        {
            "train.py": script,
            "requirements.txt": OFFLINE + "tiny_orchestrate_test\n",
            **wheel("tiny_orchestrate_test", "1.5"),
        }
    )
    mount = (
        'mount -t tmpfs none /opt && mkdir /opt/ml && mount --bind "$0" /opt/ml && unset ORCHESTRATE_ROOT && exec "$@"'
    )
    prefix = [*namespaces, "sh", "-c", mount, str(place.root)]
    ended = place.ended(place.start(prefix=prefix, python=python, env=QUIET))
    assert (ended.code, ended.failure) == (0, None), ended.err
    assert ended.out.decode().split() == [str(tmp_path / "container"), "/opt/ml/model", "/opt/ml/code"]
    assert not (place.root / "venv").exists()
    imported = [python, "-c", "import tiny_orchestrate_test"]
    assert subprocess.run(imported, cwd=tmp_path).returncode == 0
