"""Which run is meant, how it stands as far as its cloud tells, and the wait for the end of one that was cancelled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import backends, cli, finding, state, watch
from orchestrator.errors import BadInput, Conflict
from orchestrator.runs import Ledger, Run, RunState
from tests.test_watch import PLAN, a_run, ago


class Stopping:
    """A cloud that takes a stop, and of which one follower at a time hears; asked: by what it was called."""

    def __init__(self, ends_after: int | None = None, refuses: Exception | None = None) -> None:
        self.ends_after, self.refuses, self.asked = ends_after, refuses, list[str]()

    def refresh(self, run: Run, ledger: Ledger) -> Run:
        self.asked.append("refresh")
        if self.refuses is not None:
            raise self.refuses
        return ledger.get(run.id)

    def cancel(self, run: Run, *, grace_seconds: int, reason: str) -> None:
        self.asked.append(f"cancel {grace_seconds}")
        move(run, RunState.STOPPING, reason)

    def logs(self, run: Run, *, follow: bool) -> Iterator[bytes]:
        self.asked.append("logs")
        for number in itertools.count():
            if number == self.ends_after:
                move(run, RunState.STOPPED, "stopped")
            yield b""


def move(run: Run, to: RunState, note: str) -> None:
    with Ledger.open(state.ledger_file()) as ledger:
        ledger.move(run.id, to, note=note)


@pytest.fixture
def stopping(home: Path, monkeypatch: pytest.MonkeyPatch) -> Stopping:
    """The cloud of a run that has no time to save, so that nothing here waits for long."""
    a_run(home, plan={**PLAN, "limits": {"grace_seconds": -30}})
    cloud = Stopping()
    monkeypatch.setattr(backends, "load", lambda name: cloud)
    return cloud


def exit_code(*words: str) -> object:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    return caught.value.code


def test_the_end_of_a_cancelled_job_is_waited_for_by_one_follower(stopping: Stopping) -> None:
    stopping.ends_after = 50
    assert watch.wait_for_end(finding.find(None), 60).state == RunState.STOPPED
    assert stopping.asked == ["refresh", "logs"]


def test_a_stop_that_was_taken_is_no_fault_though_the_upload_takes_longer(
    stopping: Stopping, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not exit_code("cancel", "--grace-seconds", "5")
    told = capsys.readouterr()
    assert "r-0123456789 is stopping: sagemaker has taken it" in told.out
    assert "--grace-seconds has no effect" in told.err
    assert "up to 5 s" not in told.err
    assert "cancel -30" in stopping.asked


@pytest.mark.parametrize("words", [("list",), ("status",)])
def test_a_run_of_another_account_is_shown_as_it_was_last_known(
    stopping: Stopping, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    stopping.refuses = Conflict("this login is of account 2", hint="--profile of account 1")
    assert not exit_code(*words)
    told = capsys.readouterr()
    assert "r-0123456789" in told.out
    assert "as it was last known: this login is of account 2 (--profile of account 1)" in told.err


def test_without_an_id_a_run_from_elsewhere_is_not_meant(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load", lambda name: Stopping())
    theirs = a_run(home, id="r-2", created_at=ago(minutes=-1), spec={"elsewhere": True}, run_dir=str(home / "r2"))
    assert finding.find(None).id == theirs.id
    with pytest.raises(BadInput, match="list --sync"):
        finding.find(None, own=True)
    assert finding.find("r-2", own=True).id == theirs.id
    ours = a_run(home)
    assert finding.find(None).id == finding.find(None, own=True).id == ours.id
