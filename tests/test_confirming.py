"""Before money is spent: the hard stop and the amount are asked for at a terminal, and nothing is sent without a yes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import orchestrator
from orchestrator.errors import LoginNeeded, OverBudget
from orchestrator.runs import Ledger
from tests.conftest import Orchestrate
from tests.test_cli import typed_at_a_terminal

SUBMIT = (
    "submit", "train.py", "--backend", "sagemaker", "--instance", "ml.p3.2xlarge", "--region", "us-east-1",
    "--role", "arn:aws:iam::123456789012:role/training", "--bucket", "a-bucket-of-mine",
)  # fmt: skip
OPTIONS = {
    "backend": "sagemaker", "instance": "ml.p3.2xlarge", "region": "us-east-1", "bucket": "a-bucket-of-mine",
    "role": "arn:aws:iam::123456789012:role/training",
}  # fmt: skip
LOGIN = 77  # where a submit that nothing else stops ends here: there is no account


@pytest.fixture(autouse=True)
def no_account(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (project / "train.py").write_text("print('hello')\n")


def runs(home: Path) -> list[str]:
    with Ledger.open_to_read(home / "ledger.sqlite") as ledger:
        return [run.id for run in ledger.newest()]


def test_without_a_terminal_more_than_five_dollars_want_a_yes(orchestrate: Orchestrate, home: Path) -> None:
    answer = orchestrate(*SUBMIT)
    assert answer.code == 4, answer.err
    assert "at most $92.08 until the hard stop after 24 h" in answer.err
    assert "--yes" in answer.err
    assert not runs(home)
    assert orchestrate(*SUBMIT, "--yes").code == LOGIN
    assert orchestrate(*SUBMIT, "--max-hours", "1").code == LOGIN  # $3.96


def test_the_amount_above_which_is_asked_stands_in_the_settings(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "orchestrate.toml").write_text("[limits]\nconfirm_above_usd = 100\n")
    assert orchestrate(*SUBMIT).code == LOGIN
    (project / "orchestrate.toml").write_text("[limits]\nconfirm_above_usd = 0\n")
    assert orchestrate(*SUBMIT, "--max-hours", "0.1").code == 4


@pytest.mark.parametrize(
    ("typed", "code", "shown"),
    [
        (b"0.5\n", LOGIN, "hard stop in hours [24]:"),
        (b"\ny\n", LOGIN, "at most $92.08"),
        (b"\nn\n", 4, "nothing was sent"),
        (b"soon\n", 2, "--max-hours 'soon'"),
    ],
)
def test_at_a_terminal_the_hard_stop_is_asked_for_and_then_the_amount(
    home: Path, project: Path, typed: bytes, code: int, shown: str
) -> None:
    found, text = typed_at_a_terminal(list(SUBMIT), project, answer=typed)
    assert (found, shown in text) == (code, True), text
    assert ("Go on?" in text) == (typed in (b"\ny\n", b"\nn\n"))


def test_neither_a_dry_run_nor_a_rehearsals_dry_run_is_asked_about(orchestrate: Orchestrate) -> None:
    for words in (("--dry-run",), ("--rehearse", "--dry-run")):
        answer = orchestrate(*SUBMIT, *words)
        assert answer.code == 0, answer.err
        assert "MaxRuntimeInSeconds" in answer.out


def test_from_python_the_yes_is_an_argument(home: Path) -> None:
    with pytest.raises(OverBudget, match=r"at most \$92\.08"):
        orchestrator.submit("train.py", **OPTIONS)
    assert not runs(home)
    with pytest.raises(LoginNeeded):
        orchestrator.submit("train.py", **OPTIONS, yes=True)
