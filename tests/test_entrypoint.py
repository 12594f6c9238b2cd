"""Which script is meant, and what it says about itself, told without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import entrypoint
from orchestrator.errors import BadInput, NotInCatalog

SCRIPT = """# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6"]
# [tool.orchestrate]
# smoke = ["--smoke", "--epochs=1"]
# ///
import json
raise SystemExit("it was run")
"""


def test_the_script_describes_itself_and_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    found = entrypoint.find("train.py", None, tmp_path)
    assert found.dependencies == ("torch>=2.6",)
    assert found.smoke_arguments == ("--smoke", "--epochs=1")
    assert (found.source_dir, found.script, found.name, found.shipped) == (tmp_path, "train.py", "train", False)


def test_without_a_name_it_is_train_py_and_without_that_the_shipped_mlp(tmp_path: Path) -> None:
    shipped = entrypoint.find(None, None, tmp_path)
    assert (shipped.name, shipped.shipped) == ("mlp", True)
    assert "no ./train.py here" in shipped.chosen
    (tmp_path / "train.py").write_text("print()\n")
    assert entrypoint.find(None, None, tmp_path).path == tmp_path / "train.py"


def test_a_source_folder_may_lie_above_the_script(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("print()\n")
    found = entrypoint.find("jobs/train.py", ".", tmp_path)
    assert (found.source_dir, found.script) == (tmp_path, "jobs/train.py")
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match="is outside --source-dir 'other'"):
        entrypoint.find("jobs/train.py", "other", tmp_path)


def test_a_near_name_is_offered(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print()\n")
    with pytest.raises(BadInput) as caught:
        entrypoint.find("trian.py", None, tmp_path)
    assert caught.value.hint == "did you mean train.py?"
    with pytest.raises(NotInCatalog) as unknown:
        entrypoint.find("mpl", None, tmp_path)
    assert unknown.value.hint == "did you mean mlp?"


def test_a_script_in_another_declared_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    assert entrypoint.find("train.py", None, tmp_path).name == "train"


def test_what_cannot_be_imported_here_is_named_before_anything_starts(tmp_path: Path) -> None:
    text = (
        "import json, torchvison\ntry:\n    import maybe_not_there\nexcept ImportError:\n    pass\nimport neighbour\n"
    )
    (tmp_path / "train.py").write_text(text)
    (tmp_path / "neighbour.py").write_text("")
    found = entrypoint.find("train.py", None, tmp_path)
    assert entrypoint.missing_imports(found) == ("torchvison",)
    assert "torchvison" in (entrypoint.missing_import_error(found, ("torchvison",)).hint or "")
    (tmp_path / "requirements.txt").write_text("torchvison\n")
    assert entrypoint.missing_imports(found) == ()


@pytest.mark.parametrize(
    ("block", "what"),
    [
        ("# /// script\n# dependencies = 3\n# ///\n", "must be a list of texts"),
        ("# /// script\n# dependencies = [\n# ///\n", "script block is not TOML"),
        ("# /// script\n# a = 1\n# ///\n\n# /// script\n# b = 1\n# ///\n", "has 2 script blocks"),
    ],
)
def test_a_broken_script_block_is_told(block: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block + "print()\n")
    with pytest.raises(BadInput, match=what):
        entrypoint.find("train.py", None, tmp_path)
