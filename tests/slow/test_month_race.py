"""A month's last runs are launched once each: by the ledger's transaction, and by the command line on a loopback cloud."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import spending
from orchestrator.errors import OverBudget
from orchestrator.plan import Plan
from orchestrator.rehearsal import control
from orchestrator.runs import Ledger, Run, RunState
from tests.conftest import REPOSITORY, stop_everything
from tests.slow.forking import Forks
from tests.test_spending import accepted, monthly, most_of, row_of, spec_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS = 300
RACERS = 8
LEFT = 3
REGION = "us-east-1"


def ledger_of_a_round(folder: Path, number: int) -> Path:
    return folder / f"{number:03d}" / "ledger.sqlite"


def a_months_beginning(path: Path, plan: Plan) -> Decimal:
    """A ledger with runs of this month, ended, alive, refused and rehearsed; what they count, USD."""
    with Ledger.open(path) as ledger:
        for name in ("ended", "alive", "refused"):
            ledger.insert(row_of(plan, id=f"r-{name}"))
        ledger.insert(row_of(plan, id="r-rehearsed", rehearsed=True))
        ledger.move("r-ended", RunState.RUNNING)
        ledger.move("r-ended", RunState.SUCCEEDED, actual_usd="1.234567", billable_seconds=1000)
        ledger.move("r-refused", RunState.ABANDONED, note="no quota")
        known = spending.month(ledger.billed_since)
    assert [run.id for run, _ in known.reserved] == ["r-alive"]
    return known.used + known.reserved_usd


def race(folder: str, rows: list[Run], plan: Plan, barrier: Any, launched: Any) -> None:
    """One process: a run a round, sent into a ledger that all of them have open at once."""
    for number, row in enumerate(rows):
        with Ledger.open(ledger_of_a_round(Path(folder), number)) as ledger:
            barrier.wait(60)
            try:
                ledger.insert(row, admit=spending.admission(plan))
            except OverBudget:
                launched.put((number, None))
            else:
                launched.put((number, row.id))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_eight_processes_racing_for_a_months_last_three_runs_launch_exactly_three(tmp_path: Path) -> None:
    first = accepted(spec_of(max_hours=Decimal(1)))
    for number in range(ROUNDS):
        before = a_months_beginning(ledger_of_a_round(tmp_path, number), first)
    plan = monthly(str(before + LEFT * most_of(first)))
    forks = multiprocessing.get_context("fork")
    barrier, launched = forks.Barrier(RACERS), forks.SimpleQueue()
    processes = []
    for racer in range(RACERS):
        rows = [row_of(plan, id=f"r-{racer}") for _ in range(ROUNDS)]
        processes.append(forks.Process(target=race, args=(str(tmp_path), rows, plan, barrier, launched)))
        processes[-1].start()
    told = [launched.get() for _ in range(ROUNDS * RACERS)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for number in range(ROUNDS):
        winners = {run_id for round_number, run_id in told if round_number == number and run_id is not None}
        with Ledger.open_to_read(ledger_of_a_round(tmp_path, number)) as ledger:
            there = {run.id for run in ledger.newest()} - {"r-ended", "r-alive", "r-refused", "r-rehearsed"}
        assert len(there) == LEFT, number
        assert there == winners, number


HAPPENS = st.lists(
    st.tuples(st.sampled_from(["submit", "submit", "end", "lose", "refuse"]), st.integers(1, 60), st.integers(0, 100)),
    min_size=5, max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(happens=HAPPENS, limit=st.decimals(1, 60, places=2))
def test_whatever_happens_in_a_month_its_limit_is_kept(
    happens: list[tuple[str, int, int]], limit: Decimal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Ledger.open(tmp_path_factory.mktemp("month") / "ledger.sqlite") as ledger:
        alive: list[tuple[str, Decimal]] = []
        paid = lost = Decimal(0)
        for what, tenths, percent in happens:
            if what == "submit":
                plan = monthly(str(limit), str(Decimal(tenths) / 10))
                fits = paid + lost + sum(most for _, most in alive) + most_of(plan) <= limit
                try:
                    ledger.insert(row_of(plan), admit=spending.admission(plan))
                except OverBudget:
                    assert not fits
                else:
                    assert fits
                    alive.append((plan.run_id, most_of(plan)))
            elif alive:
                run_id, most = alive.pop(percent % len(alive))
                actual = (most * percent / 100).quantize(Decimal("0.000001"), ROUND_FLOOR)
                lost += most if what == "lose" else 0
                paid += actual if what == "end" else 0
                _end(ledger, run_id, what, actual)
        known = spending.month(ledger.billed_since)
        assert (known.used, known.reserved_usd) == (paid, lost + sum(most for _, most in alive))
        assert known.used + known.reserved_usd <= limit


def _end(ledger: Ledger, run_id: str, what: str, actual: Decimal) -> None:
    """It ends as billed, or nobody tells what was billed, or it was refused; its disk's seconds are in *actual* already."""
    if what == "refuse":
        ledger.move(run_id, RunState.ABANDONED, note="no quota")
        return
    ledger.move(run_id, RunState.RUNNING)
    billed = {"actual_usd": str(actual), "billable_seconds": 0} if what == "end" else {}
    ledger.move(run_id, RunState.SUCCEEDED, **billed)


@dataclasses.dataclass
class Typing:
    """Where commands are typed whose `submit` goes, by its AWS settings, to a loopback cloud: not as a rehearsal."""

    project: Path
    home: Path
    url: str
    forks: Forks
    environment: dict[str, str]

    def __call__(self, *commands: list[str]) -> list[dict[str, Any]]:
        return self.forks.run(*commands, folder=self.project, timeout=300, env=self.environment)

    def submit(self, name: str, *words: str) -> list[str]:
        place = ["--role", control.role_arn(REGION), "--bucket", control.bucket_of(REGION), "--region", REGION]
        machine = ["--backend", "sagemaker", "--instance", "ml.m5.large"]
        return ["submit", "train.py", *machine, *place, "--name", name, "--detach", "--yes", *words]

    def limit(self, usd: Decimal) -> None:
        (self.project / "orchestrate.toml").write_text(f"[limits]\nper_month_usd = {usd}\n")

    def runs(self) -> list[Run]:
        with Ledger.open_to_read(self.home / "ledger.sqlite") as ledger:
            return ledger.newest()

    def jobs(self) -> set[str]:
        return {job["name"] for job in control.call(self.url, "GET", "state")["jobs"]}


@pytest.fixture
def typing(tmp_path: Path, home: Path, project: Path) -> Iterator[Typing]:
    folder = tmp_path / "cloud"
    folder.mkdir()
    url = control.ensure(folder, grace_seconds=3, idle_seconds=600).url
    control.provision(url, role=control.role_arn(REGION), bucket=control.bucket_of(REGION), region=REGION)
    (project / "train.py").write_text("print('hello')\n")
    forks = Forks(REPOSITORY, {"NO_COLOR": "1"})
    environment = {**control.environment(url, REGION), "ORCHESTRATE_HOME": str(home), "NO_COLOR": "1"}
    yield Typing(project, home, url, forks, environment)
    forks.close()
    stop_everything(home)
    control.stop(folder)


def usd_of(hours: str) -> Decimal:
    return most_of(accepted(spec_of("ml.m5.large", max_hours=Decimal(hours))))


def test_eight_submits_at_once_make_the_three_jobs_that_a_month_still_takes(typing: Typing) -> None:
    typing.limit(LEFT * usd_of("1"))
    answers = typing(*[typing.submit(f"run{number}", "--max-hours", "1") for number in range(RACERS)])
    assert sorted(answer["code"] for answer in answers) == [0] * LEFT + [4] * (RACERS - LEFT), answers
    for answer in answers:
        assert answer["code"] == 0 or "per_month_usd" in answer["err"]
    assert {run.remote_id for run in typing.runs()} == typing.jobs()
    assert len(typing.jobs()) == LEFT


def test_the_same_submit_again_goes_on_with_its_run_and_reserves_nothing_more(typing: Typing) -> None:
    typing.limit(usd_of("1"))
    same = typing.submit("same", "--max-hours", "1")
    answers = typing(*[same] * RACERS)
    assert [answer["code"] for answer in answers] == [0] * RACERS, answers
    assert len(typing.jobs()) == 1
    (again,) = typing([*same, "--again"])
    assert again["code"] == 4, again
    assert len(typing.runs()) == 1


def test_a_machine_that_is_refused_frees_its_reservation_for_the_next_one(typing: Typing) -> None:
    both = "ml.m5.large,ml.c5.xlarge"
    typing.limit(max(usd_of("1"), most_of(accepted(spec_of("ml.c5.xlarge", max_hours=Decimal(1))))))
    control.call(typing.url, "POST", "faults", ["quota"])
    words = typing.submit("two", "--max-hours", "1")
    words[words.index("ml.m5.large")] = both
    (answer,) = typing(words)
    assert answer["code"] == 0, answer
    assert [(run.spec["instance"], run.state != RunState.ABANDONED) for run in reversed(typing.runs())] == [
        ("ml.m5.large", False), ("ml.c5.xlarge", True),
    ]  # fmt: skip
    assert len(typing.jobs()) == 1


def test_a_submit_that_reaches_nobody_frees_its_reservation(typing: Typing) -> None:
    typing.limit(usd_of("1"))
    nobody = {**typing.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}  # nobody listens there
    first = dataclasses.replace(typing, environment=nobody)
    (answer,) = first(first.submit("first", "--max-hours", "1"))
    assert answer["code"] not in (0, 4), answer
    (second,) = typing(typing.submit("second", "--max-hours", "1"))
    assert second["code"] == 0, (answer, second, typing.runs())
