"""What runs have cost, out of a real ledger: actual beside estimated, and nothing that is not known counted as nothing."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from estimates import catalog, pricebook
from orchestrator import costs_command, runs, state
from orchestrator.costs_command import document, report
from orchestrator.errors import BadInput, Problems
from orchestrator.runs import Ledger, Run
from tests.conftest import REPOSITORY, Orchestrate

NOW = "2026-11-22T12:00:00.000+00:00"
GPU, CPU = "ml.g5.xlarge", "ml.m5.xlarge"


def a_run(
    run_id: str,
    began: str,
    *,
    seconds: int | None = 3600,
    price: str | None = "1.00",
    machine: str | None = GPU,
    count: int = 1,
    estimated: str | None = None,
    **changes: Any,
) -> Run:
    """A run that SageMaker billed for *seconds*, at the price of its own row."""
    day = f"{began}T10:00:00.000+00:00" if len(began) == 10 else began
    plan: dict[str, Any] = {
        "machine": None if machine is None else {"name": machine, "cloud": "sagemaker", "what": ""},
        "count": count,
        "price": None if price is None else {"usd_per_hour": price, "as_of": began[:10], "source": "a list"},
        "seconds_from": "as long as before",
    }  # fmt: skip
    values: dict[str, Any] = {
        "id": run_id, "name": "mlp", "backend": "sagemaker", "state": "succeeded", "script": "mlp.py",
        "script_key": "shipped:mlp", "created_at": day, "started_at": day, "ended_at": day, "spec": {}, "plan": plan,
        "run_dir": "/nowhere", "billable_seconds": seconds, "estimated_usd": estimated,
    }  # fmt: skip
    return Run(**(values | changes))


def never_began(run_id: str, began: str) -> Run:
    return replace(a_run(run_id, began, seconds=None, estimated="7.00"), state="failed", started_at=None)


def some_runs() -> list[Run]:
    """Three months: $1, $4 and an unknown; $0.75 of two scripts; one that runs for two hours; and what costs nothing."""
    at_most = a_run(
        "r-most", "2026-11-03", seconds=900, estimated="24.00", script="other.py", script_key="/home/me/other.py"
    )
    return [
        a_run("r-1", "2026-09-30", estimated="2.00"),
        a_run("r-2", "2026-10-02", seconds=7200, count=2, estimated="3.00"),
        a_run("r-dark", "2026-10-05", price=None, machine=CPU),
        a_run("r-3", "2026-11-02", seconds=1800, machine=CPU, estimated="0.40"),
        replace(at_most, plan={**at_most.plan, "seconds_from": "at most: the hard stop"}),
        a_run("r-now", NOW.replace("12:", "10:"), seconds=None, state="running", ended_at=None, estimated="9.00"),
        never_began("r-no", "2026-11-04"),
        a_run("r-rehearsed", "2026-11-05", rehearsed=True, estimated="1.00"),
        a_run("r-here", "2026-11-06", backend="local", machine=None, price=None, seconds=None, actual_usd="0", estimated="0"),
    ]  # fmt: skip


def told(found: list[Run], *by: str, **filters: Any) -> dict[str, Any]:
    asked = {"since": None, "until": None, "limit": None, "now": NOW} | filters
    return document(report(found, by or ("month",), **asked))


def keep(home: Path, found: list[Run]) -> None:
    with Ledger.open(home / "ledger.sqlite") as ledger:
        for run in found:
            ledger.insert(run)


def test_a_month_has_the_cost_of_the_runs_that_began_in_it() -> None:
    groups = told(some_runs())["groups"]
    assert [(group["month"], group["runs"], group["usd"]) for group in groups] == [
        ("2026-09", 1, "1.000000"),
        ("2026-10", 2, "4.000000"),
        ("2026-11", 4, "2.750000"),
    ]


def test_a_run_whose_cost_is_not_known_is_counted_as_unknown_and_never_as_nothing() -> None:
    october = told(some_runs())["groups"][1]
    assert (october["unknown_runs"], october["usd"]) == (1, "4.000000")
    alone = told([a_run("r-dark", "2026-10-05", price=None)])
    assert alone["total"]["usd"] is None
    assert alone["unknown_runs"] == ["r-dark"]


def test_a_run_without_a_price_but_with_the_clouds_own_amount_is_known() -> None:
    assert told([a_run("r-1", "2026-10-05", price=None, actual_usd="0.125")])["total"]["usd"] == "0.125000"


def test_what_never_began_has_no_cost_and_no_part_in_the_estimates() -> None:
    total = told([never_began("r-no", "2026-11-04")])["total"]
    assert (total["usd"], total["estimated_usd"]) == (None, None)
    assert (total["not_billed_runs"], total["unknown_runs"]) == (1, 0)


def test_rehearsed_and_local_runs_stand_apart_and_in_no_sum() -> None:
    found = told(some_runs())
    assert found["rehearsed"] == {"runs": 1, "would_have_cost_usd": "1.000000"}
    assert found["local"] == {"runs": 1}
    assert found["total"]["runs"] == 7


def test_a_run_that_goes_on_counts_up_to_now_and_is_not_exact() -> None:
    total = told([run for run in some_runs() if run.id == "r-now"])["total"]
    assert (total["usd"], total["running_runs"], total["exact"]) == ("2.000000", 1, False)


def test_the_ratio_holds_ended_runs_against_what_was_expected_of_them() -> None:
    total = told(some_runs())["total"]
    # (1.00 + 4.00 + 0.50) / (2.00 + 3.00 + 0.40): neither the running one nor the one that had a hard stop alone.
    assert total["compared_runs"] == 3
    assert total["actual_over_estimated"] == "1.0185"
    assert total["estimate_is_at_most"]


def test_a_ratio_is_not_taken_where_nothing_was_estimated_or_nothing_is_known() -> None:
    bare = [a_run("r-1", "2026-09-30"), a_run("r-2", "2026-09-30", price=None, estimated="1.00")]
    total = told([*bare, a_run("r-3", "2026-09-30", estimated="0")])["total"]
    assert (total["actual_over_estimated"], total["compared_runs"]) == (None, 0)


def test_a_begun_second_and_a_begun_millionth_count_whole_and_sums_are_not_rounded_twice() -> None:
    found = [a_run(f"r-{number}", "2026-09-30", seconds=1, price="0.10") for number in range(3)]
    # Three times 0.10 / 3600: rounded up once, and not 3 × 0.000028.
    assert told(found)["total"]["usd"] == "0.000084"


def test_the_month_is_that_of_utc_wherever_the_run_was_started() -> None:
    abroad = a_run("r-1", "2026-10-31T20:30:00.000-05:00")
    assert [group["month"] for group in told([abroad])["groups"]] == ["2026-11"]


def test_days_are_from_the_first_on_and_before_the_last() -> None:
    def ids(**days: date) -> list[str]:
        found = told(some_runs(), **days)
        return [group["month"] for group in found["groups"]]

    assert ids(since=date(2026, 10, 2)) == ["2026-10", "2026-11"]
    assert ids(since=date(2026, 10, 3), until=date(2026, 10, 5)) == []
    assert ids(until=date(2026, 10, 5)) == ["2026-09", "2026-10"]


def test_groups_nest_as_they_were_asked_for_and_the_dearest_script_comes_first() -> None:
    groups = told(some_runs(), "script", "machine")["groups"]
    assert [group["script"] for group in groups] == ["shipped:mlp", "/home/me/other.py"]
    assert [(inner["machine"], inner["usd"]) for inner in groups[0]["groups"]] == [(GPU, "7.000000"), (CPU, "0.500000")]
    assert Decimal(groups[0]["usd"]) == sum(Decimal(inner["usd"]) for inner in groups[0]["groups"])


def test_a_run_without_a_machine_in_its_plan_has_a_group_too() -> None:
    groups = told([a_run("r-1", "2026-09-30", machine=None)], "machine")["groups"]
    assert [group["machine"] for group in groups] == ["not known"]


def test_scripts_of_one_name_are_told_apart_by_where_they_lie(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins = [a_run(f"r-{at}", "2026-09-30", script="train.py", script_key=f"/home/{at}/train.py") for at in "ab"]
    keep(home, twins)
    costs_command.run(by=("script",), since=None, until=None, as_json=False, as_csv=False)
    out = capsys.readouterr().out
    assert "/home/a/train.py" in out
    assert "/home/b/train.py" in out


def test_a_new_price_in_the_book_does_not_change_what_runs_have_cost() -> None:
    before = told(some_runs())
    machine = catalog.machine(GPU)
    dearer = catalog.Price(
        Decimal(100), "us-east-1", "on_demand", "Training", date(2026, 11, 22), "day", "A", "a newer list", ""
    )
    with pricebook.using(replace(pricebook.current(), machines={("sagemaker", GPU): (dearer,)})):
        assert catalog.prices(machine) == (dearer,)
        assert told(some_runs()) == before


def test_a_refreshed_price_file_does_not_change_what_runs_have_cost(home: Path, orchestrate: Orchestrate) -> None:
    ended = [run for run in some_runs() if run.ended]
    keep(home, ended)
    shipped = (REPOSITORY / "estimates" / "catalog" / "prices.csv").read_text("utf-8")
    head = shipped.splitlines()[0]
    (home / "prices").mkdir()
    dear = f"sagemaker,{GPU},us-east-1,on_demand,Training,79,2026-11-21,day,A,a newer list,"
    (home / "prices" / "aws.csv").write_text(f"{head}\n{dear}\n")
    with pricebook.using(pricebook.read_files(home / "prices")):
        newer = catalog.price(catalog.machine(GPU))
        assert newer is not None
        assert newer.usd_per_hour == 79
    assert orchestrate("costs", "--json").json == told(ended)


def test_the_table_says_all_that_the_sums_leave_out(home: Path, orchestrate: Orchestrate) -> None:
    keep(home, [run for run in some_runs() if run.id != "r-now"])
    answer = orchestrate("costs")
    assert answer.code == 0, answer.err
    assert [line.rstrip() for line in answer.out.splitlines()] == [
        "What runs have cost, by month (UTC)",
        "month    runs   actual  estimated  actual/estimate  no known cost",
        "2026-09     1    $1.00      $2.00             0.50              -",
        "2026-10     2    $4.00      $3.00             1.33              1",
        "2026-11     3  $0.7500   ≤ $24.40             1.25              -",
        "total       6    $5.75   ≤ $29.40             1.02              1",
        "1 run without a known cost, in no sum: r-dark",
        "1 run never began: nothing was billed",
        "≤ holds an estimate that is only the most that a run could cost; no ratio is taken of it",
        "machine time alone: disks, storage, logs and transfer are on the cloud's own bill",
        "1 run rehearsed: $0 (would have cost $1.00)",
        "1 run on this machine: $0",
        "next: orchestrate costs --by script   or: orchestrate costs --csv",
    ]


def test_what_still_runs_or_has_a_derived_price_is_shown_as_rough(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    derived = a_run("r-1", "2026-09-30")
    price = {**derived.plan["price"], "published": False}
    keep(home, [replace(derived, plan={**derived.plan, "price": price}), a_run("r-2", "2026-10-01")])
    costs_command.run(by=("month",), since=None, until=None, as_json=False, as_csv=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[2:5]] == ["~$1.00", "$1.00", "~$2.00"]


def test_csv_has_a_line_for_each_innermost_group(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(home, some_runs())
    costs_command.run(by=("month", "machine"), since=None, until="2026-11-01", as_json=False, as_csv=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["month"], row["machine"], row["usd"], row["unknown_runs"]) for row in rows] == [
        ("2026-09", GPU, "1.000000", "0"),
        ("2026-10", GPU, "4.000000", "0"),
        ("2026-10", CPU, "", "1"),
    ]


def test_an_empty_ledger_is_one_clear_line_and_no_error(orchestrate: Orchestrate) -> None:
    answer = orchestrate("costs")
    assert (answer.code, answer.out, answer.err) == (0, "there are no runs yet\nnext: orchestrate submit\n", "")


def test_local_runs_alone_have_cost_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(home, [run for run in some_runs() if run.id == "r-here"])
    costs_command.run(by=("month",), since=None, until=None, as_json=False, as_csv=False)
    assert capsys.readouterr().out.startswith(
        "no run has been in a cloud: nothing was billed\n1 run on this machine: $0\n"
    )


def test_the_months_limit_is_that_of_the_settings_file(
    home: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    today = runs.utc_now()
    ceiling = {"usd": "9.5", "seconds": 9000, "usd_per_second": "0.001", "disk_usd_per_second": "0", "kept_seconds": 0}
    alive = a_run("r-now", today, seconds=None, state="running", ended_at=None)
    keep(home, [replace(alive, plan={**alive.plan, "ceiling": ceiling}), a_run("r-1", today, actual_usd="1.00")])
    (project / "orchestrate.toml").write_text("[limits]\nper_month_usd = 250\n")
    costs_command.run(by=(), since=None, until=None, as_json=False, as_csv=False)
    said = f"limit: $1.00 of $250.00 used in {today[:7]}, $9.50 reserved by r-now ($9.50), $239.50 left"
    assert said in capsys.readouterr().out
    costs_command.run(by=(), since=None, until="2020-01-01", as_json=True, as_csv=False)
    limit = json.loads(capsys.readouterr().out)["limit"]
    assert (limit["per_month_usd"], limit["used_usd"], limit["reserved_usd"]) == ("250.000000", "1.000000", "9.500000")


def test_a_settings_file_with_a_fault_does_not_hide_the_costs(
    home: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(home, some_runs())
    (project / "orchestrate.toml").write_text("[limits]\nper_month_usd = 'much'\n")
    costs_command.run(by=(), since=None, until=None, as_json=True, as_csv=False)
    answer = capsys.readouterr()
    assert json.loads(answer.out)["total"]["runs"] == 7
    assert json.loads(answer.out)["limit"] is None
    assert "note: the limits are not shown" in answer.err


def test_everything_wrong_with_what_was_typed_is_said_at_once(home: Path) -> None:
    with pytest.raises(Problems) as caught:
        costs_command.run(by=("year", "month", "month"), since="2026-02-30", until="soon", as_json=True, as_csv=True)
    assert [error.what for error in caught.value.errors] == [
        "costs cannot be told by 'year'",
        "--by month was given 2 times",
        "--json and --csv are two formats",
        "--since '2026-02-30' is no day",
        "--until 'soon' is no day",
    ]
    with pytest.raises(BadInput, match="no day lies between"):
        costs_command.run(by=(), since="2026-03-01", until="2026-03-01", as_json=False, as_csv=False)


def test_control_codes_in_a_scripts_name_do_not_reach_the_terminal(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(home, [a_run("r-1", "2026-09-30", script="a\x1b[2Jb.py", script_key="a\x1b[2Jb.py")])
    costs_command.run(by=("script",), since=None, until=None, as_json=False, as_csv=False)
    assert "\x1b[2J" not in capsys.readouterr().out


def test_costs_need_neither_boto3_nor_a_cloud(home: Path) -> None:
    program = (
        "import sys; from orchestrator import cli, costs_command as c\n"
        "c.run(by=('month',), since=None, until=None, as_json=True, as_csv=False)\n"
        "sys.exit(' '.join({'boto3', 'botocore', 'plotly', 'torch', 'google.auth'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "total" in done.stdout


def test_the_ledger_is_the_one_of_the_state_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert state.ledger_file() == home / "ledger.sqlite"
    keep(home, [a_run("r-1", "2026-09-30", state=str(runs.RunState.STOPPED))])
    costs_command.run(by=("month",), since="2026-09-30", until="2026-10-01", as_json=False, as_csv=False)
    assert "2026-09     1   $1.00" in capsys.readouterr().out
