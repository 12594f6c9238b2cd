"""`orchestrate prices`: what is read, kept and told; one cloud's failure is not the other's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from estimates import catalog, pricebook
from orchestrator import pricefiles, prices_command, state
from orchestrator.errors import BadInput, CloudRefused, LoginNeeded, NotInCatalog, OrchestrateError
from tests.conftest import REPOSITORY, wait_until
from tests.prices.listings import a3, bulk, fees, n1, offer, sku, storage, written
from tests.prices.services import Service, aws_fault, google_fault

SPOT = {"component": "SpotTraining", "kind": "SpotTraining", "usage": "SpotTraining"}


@pytest.fixture(autouse=True)
def place(home: Path, project: Path) -> None:
    """A state folder and a working folder of this test alone."""


def refresh(*clouds: str, regions: tuple[str, ...] = (), **options: Any) -> None:
    given = {"all_regions": False, "profile": None, "google_api_key_file": None, "as_json": False, **options}
    prices_command.refresh(clouds or ("sagemaker", "vertex"), regions, **given)


def refused(*clouds: str, **options: Any) -> OrchestrateError:
    with pytest.raises(OrchestrateError) as caught:
        refresh(*clouds, **options)
    return caught.value


def price(name: str, region: str) -> str | None:
    found = pricebook.read_files(state.prices_dir()).price(catalog.machine(name), region)
    return f"{found.usd_per_hour:f} of {found.as_of}" if found else None


# refresh


def test_both_clouds_are_read_and_their_prices_hold_from_then_on(
    pricing: Service, billing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    pricing.entries = [
        offer("ml.p3.2xlarge", "3.9"),
        offer("ml.g5.xlarge", "1.4", **SPOT),
        storage("0.15", "us-east-1"),
        offer("ml.m5.large", "0.115", "us-west-2"),
    ]
    billing.entries = [*a3(), *n1(), *fees()]
    refresh(regions=("us-east-1", "us-west-2", "us-central1"))
    today = pricefiles.today()
    assert price("ml.p3.2xlarge", "us-east-1") == f"3.9 of {today}"
    assert price("ml.m5.large", "us-west-2") == f"0.115 of {today}"
    assert price("a3-highgpu-8g", "us-central1") == f"101.007352 of {today}"
    book = pricebook.read_files(state.prices_dir())
    spot = book.price(catalog.machine("ml.g5.xlarge"), "us-east-1", "spot")
    rate = book.rate("sagemaker", "training_storage", "us-east-1")
    assert spot is not None
    assert rate is not None
    assert (str(spot.usd_per_hour), str(rate.usd), rate.published) == ("1.4", "0.15", True)
    out = capsys.readouterr().out
    assert f"SageMaker: 3 prices of 3 machines in 2 regions, 1 rate of disks, as of {today}, in " in out
    assert "Vertex AI: " in out
    assert "3 management fee, which the on-demand price contains" in out
    assert "\nnext: orchestrate " in out


def test_a_price_that_no_such_machine_can_have_is_left_out_and_said(
    pricing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    pricing.entries = [offer("ml.p3.2xlarge", "3.9"), offer("ml.m5.large", "99999")]
    refresh("sagemaker", regions=("us-east-1",))
    assert "a price that no such machine can have" in capsys.readouterr().out
    assert price("ml.p3.2xlarge", "us-east-1") == f"3.9 of {pricefiles.today()}"
    assert price("ml.m5.large", "us-east-1") == "0.115 of 2026-08-11"


def test_what_the_refresh_changed_is_shown_against_what_held_before(
    pricing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = catalog.machine("ml.p3.2xlarge")
    shipped = pricebook.shipped().price(machine, "us-east-1")
    assert shipped is not None
    pricing.entries = [offer("ml.p3.2xlarge", "3.9")]
    refresh("sagemaker", regions=("us-east-1",))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ml.p3.2xlarge"))
    assert f"{shipped.usd_per_hour:f}" in line
    assert "3.9" in line
    pricing.entries = [offer("ml.p3.2xlarge", "3.9")]
    refresh("sagemaker", regions=("us-east-1",))
    assert "0 changed, 1 price as before" in capsys.readouterr().out


def test_without_a_region_those_are_read_of_which_the_shipped_book_has_prices(pricing: Service) -> None:
    pricing.entries = [offer("ml.m5.large", region=region) for region in catalog.regions("sagemaker")]
    refresh("sagemaker")
    published = {
        row.region
        for (cloud, _), rows in pricebook.shipped().machines.items()
        for row in rows
        if cloud == "sagemaker" and row.published
    }
    assert {row.region for row in pricefiles.prices("sagemaker")} == published
    assert {"us-east-1", "us-west-2", "eu-west-1"} <= published


def test_the_region_of_the_settings_and_of_the_shell_is_the_one_that_is_read(
    pricing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricing.entries = [offer("ml.m5.large", region=region) for region in ("eu-west-1", "eu-central-1", "us-east-1")]
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    refresh("sagemaker")
    assert {row.region for row in pricefiles.prices("sagemaker")} == {"eu-west-1"}
    Path("orchestrate.toml").write_text('region = "eu-central-1"\n')
    refresh("sagemaker")
    assert {row.region for row in pricefiles.prices("sagemaker")} == {"eu-west-1", "eu-central-1"}


def test_a_region_that_is_named_settles_what_the_shell_leaves_open(
    pricing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricing.entries = [offer(region="us-west-2")]
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert "two regions" in refused("sagemaker").what
    refresh("sagemaker", regions=("us-west-2",))
    assert {row.region for row in pricefiles.prices("sagemaker")} == {"us-west-2"}


def test_all_regions_are_all_but_those_that_are_paid_in_yuan(pricing: Service) -> None:
    pricing.entries = [offer("ml.m5.large", region=region) for region in catalog.regions("sagemaker")]
    refresh("sagemaker", all_regions=True)
    read = {row.region for row in pricefiles.prices("sagemaker")}
    assert read == {region for region in catalog.regions("sagemaker") if not region.startswith("cn-")}


def test_a_region_chooses_its_cloud(pricing: Service, billing: Service) -> None:
    pricing.entries, billing.entries = [offer()], n1(["us-central1", "europe-west4"])
    refresh(regions=("us-east-1",))
    assert (pricefiles.clouds(), billing.requests) == (["sagemaker"], 0)
    refresh(regions=("europe-west4",))
    assert {row.region for row in pricefiles.prices("vertex")} == {"europe-west4"}


@pytest.mark.parametrize(
    ("clouds", "options", "kind", "words"),
    [
        (("azure",), {}, NotInCatalog, "'azure'"),
        ((), {"regions": ("us-esat-1",)}, NotInCatalog, "'us-esat-1'"),
        (("vertex",), {"regions": ("us-east-1",)}, NotInCatalog, "Vertex AI has no region 'us-east-1'"),
        ((), {"regions": ("us-east-1",), "all_regions": True}, BadInput, "exclude each other"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(
    clouds: tuple[str, ...], options: dict[str, Any], kind: type[OrchestrateError], words: str, pricing: Service
) -> None:
    error = refused(*clouds, **options)
    assert type(error) is kind
    assert words in error.what
    assert error.hint
    assert pricing.requests == 0


def test_one_clouds_failure_keeps_the_others_prices_and_gives_its_own_exit_code(
    pricing: Service, billing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    pricing.entries, billing.entries = [offer()], n1()
    billing.faults = {0: google_fault(403, "Cloud Billing API has not been used", "PERMISSION_DENIED")}
    error = refused(regions=("us-east-1", "us-central1"))
    assert isinstance(error, CloudRefused)
    assert pricefiles.clouds() == ["sagemaker"]
    assert "SageMaker: 1 price of 1 machine in us-east-1" in capsys.readouterr().out
    pricing.faults = {pricing.requests: aws_fault("ExpiredTokenException", "the token is expired")}
    assert isinstance(refused(regions=("us-east-1", "us-central1")), LoginNeeded)
    assert pricefiles.clouds() == ["sagemaker", "vertex"]


def test_with_json_a_failure_leaves_stdout_to_the_errors(
    pricing: Service, billing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    pricing.entries = [offer()]
    billing.faults = {0: google_fault(403, "no", "PERMISSION_DENIED")}
    refused(regions=("us-east-1", "us-central1"), as_json=True)
    told = capsys.readouterr()
    assert told.out == ""
    assert "SageMaker: 1 price" in told.err


def test_when_both_fail_both_are_told(pricing: Service, billing: Service) -> None:
    pricing.faults = {0: aws_fault("AccessDeniedException", "not authorized to perform: pricing:GetProducts")}
    billing.faults = {0: google_fault(401, "invalid authentication credentials", "UNAUTHENTICATED")}
    error = refused(regions=("us-east-1", "us-central1"))
    assert (error.exit_code, "pricing:GetProducts" in error.what, "authentication" in error.what) == (5, True, True)


@pytest.mark.parametrize("failing", [aws_fault("AccessDeniedException", "no"), (200, b"not json")])
def test_a_reading_that_breaks_off_leaves_the_old_file_as_it_is(pricing: Service, failing: Any) -> None:
    pricing.entries = [offer(f"ml.m5.{size}") for size in ("large", "xlarge", "2xlarge")]
    refresh("sagemaker", regions=("us-east-1",))
    before = pricefiles.prices_file("sagemaker").read_bytes()
    pricing.entries = [offer(f"ml.m5.{size}", "9") for size in ("large", "xlarge", "2xlarge")]
    pricing.faults = {pricing.requests + number: failing for number in range(1, 6)}
    refused("sagemaker", regions=("us-east-1",))
    assert pricefiles.prices_file("sagemaker").read_bytes() == before


def test_an_empty_list_leaves_the_old_file_as_it_is_and_is_said(
    pricing: Service, billing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    pricing.entries, billing.entries = [offer(), offer(region="us-west-2")], n1()
    refresh(regions=("us-east-1", "us-west-2", "us-central1"))
    before = {cloud: pricefiles.prices_file(cloud).read_bytes() for cloud in ("sagemaker", "vertex")}
    pricing.entries, billing.entries = [], [sku("Vertex AI: something else", "1")]
    assert "no price of SageMaker training in us-east-1" in refused("sagemaker", regions=("us-east-1",)).what
    assert "1 not of training" in refused("vertex", regions=("us-central1",)).what
    assert {cloud: pricefiles.prices_file(cloud).read_bytes() for cloud in before} == before
    capsys.readouterr()
    pricing.entries = [offer("ml.m5.large", "0.2")]
    refresh("sagemaker", regions=("us-east-1", "us-west-2"))
    assert "no price is listed in us-west-2: what is known of them stays as it is" in capsys.readouterr().out
    assert {(row.region, str(row.usd_per_hour)) for row in pricefiles.prices("sagemaker")} == {
        ("us-east-1", "0.2"),
        ("us-west-2", "0.115"),
    }


def test_a_type_that_this_version_does_not_know_is_kept_and_named(
    pricing: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    pricing.entries = [offer("ml.z9.large", "1"), offer("ml.m5.large", "0.115")]
    refresh("sagemaker", regions=("us-east-1",))
    out = capsys.readouterr().out
    assert "not known to this version: ml.z9.large" in out
    assert "machines of the catalog have no price there" in out


def test_json_has_what_was_read_and_what_changed(pricing: Service, capsys: pytest.CaptureFixture[str]) -> None:
    pricing.entries = [offer("ml.p3.2xlarge", "4"), offer("ml.z9.large", "1")]
    refresh("sagemaker", regions=("us-east-1", "us-west-2"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    (read,) = document["read"]
    assert (read["prices"], read["regions"], read["regions_without_prices"]) == (2, ["us-east-1"], ["us-west-2"])
    assert read["unknown_machines"] == ["ml.z9.large"]
    (changed,) = document["diff"]["changed"]
    assert (
        changed["machine"],
        changed["old_usd_per_hour"],
        changed["new_usd_per_hour"],
        changed["change_percent"],
    ) == (
        "ml.p3.2xlarge",
        "3.825",
        "4",
        "4.58",
    )
    assert [one["machine"] for one in document["diff"]["new"]] == ["ml.z9.large"]
    assert "ml.m5.large" in {one["machine"] for one in document["diff"]["gone"]}


def test_no_login_of_either_cloud_is_told_twice_and_nothing_is_kept() -> None:
    error = refused(regions=("us-east-1", "us-central1"))
    assert error.exit_code == LoginNeeded.exit_code
    assert pricefiles.clouds() == []


# import and diff


def test_an_imported_file_is_kept_and_one_that_is_older_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = bulk([offer("ml.p3.2xlarge", "4")])
    prices_command.import_file(written(tmp_path, "new.json", new), False)
    assert price("ml.p3.2xlarge", "us-east-1") == "4 of 2026-11-15"
    capsys.readouterr()
    old = bulk([offer("ml.p3.2xlarge", "9")], publicationDate="2026-11-14T00:00:00Z")
    prices_command.import_file(written(tmp_path, "old.json", old), False)
    assert price("ml.p3.2xlarge", "us-east-1") == "4 of 2026-11-15"
    assert "older than what is there, and so left out: us-east-1" in capsys.readouterr().out


def test_diff_without_a_file_tells_that_nothing_was_refreshed(capsys: pytest.CaptureFixture[str]) -> None:
    prices_command.diff(None, False)
    assert capsys.readouterr().out.startswith("no prices were refreshed here: the shipped ones hold\n")
    prices_command.diff(None, True)
    assert json.loads(capsys.readouterr().out)["diff"]["changed"] == []


def test_diff_compares_what_was_refreshed_with_what_was_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bulk([offer("ml.p3.2xlarge", "4"), offer("ml.p3.16xlarge", "30")])
    prices_command.import_file(written(tmp_path, "one.json", first), False)
    capsys.readouterr()
    prices_command.diff(None, True)
    changed = {one["machine"]: one for one in json.loads(capsys.readouterr().out)["diff"]["changed"]}
    assert changed["ml.p3.2xlarge"]["old_usd_per_hour"] == "3.825"
    assert (changed["ml.p3.16xlarge"]["old_usd_per_hour"], changed["ml.p3.16xlarge"]["old_published"]) == (
        "28.152",
        False,
    )
    prices_command.diff(None, False)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ml.p3.16xlarge"))
    assert line.split()[1:5] == ["us-east-1", "~28.152", "30", "+6.6"]


def test_diff_of_a_file_compares_it_with_what_holds_now_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices_command.import_file(written(tmp_path, "one.json", bulk([offer("ml.p3.2xlarge", "4")])), False)
    capsys.readouterr()
    other = written(tmp_path, "two.json", bulk([offer("ml.p3.2xlarge", "5")], publicationDate="2026-11-20"))
    prices_command.diff(other, True)
    (changed,) = json.loads(capsys.readouterr().out)["diff"]["changed"]
    assert (changed["old_usd_per_hour"], changed["new_usd_per_hour"], changed["change_percent"]) == ("4", "5", "25.00")
    assert price("ml.p3.2xlarge", "us-east-1") == "4 of 2026-11-15"


def test_a_change_too_small_to_be_shown_is_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "x.json", bulk([offer("ml.p3.2xlarge", "3.8251"), offer("ml.m5.large", "0.2")]))
    prices_command.diff(file, False)
    out = capsys.readouterr().out
    assert "1 changed, 1 by less than 0.05 %, 0 prices as before" in out
    assert not [line for line in out.splitlines() if line.startswith("ml.p3.2xlarge")]
    prices_command.diff(file, True)
    assert len(json.loads(capsys.readouterr().out)["diff"]["changed"]) == 2


def test_a_long_list_of_changes_is_cut_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = pricebook.shipped()
    priced = [machine for machine in catalog.machines("sagemaker") if book.price(machine, "us-east-1")]
    items = [offer(machine.name, f"{900 + number}.5") for number, machine in enumerate(priced)]
    assert len(items) > prices_command.SHOWN_CHANGES
    prices_command.diff(written(tmp_path, "all.json", bulk(items)), False)
    out = capsys.readouterr().out
    shown = [line for line in out.splitlines() if line.startswith("ml.")]
    assert len(shown) == prices_command.SHOWN_CHANGES
    assert f"{len(items) - len(shown)} more: --json lists all" in out
    changes = [float(line.split("%")[0].split()[-1]) for line in shown]
    assert changes == sorted(changes, reverse=True)


def test_words_of_a_price_list_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = offer("ml.m5.large", component="\x1b[31mred[bold]\nblue", kind=None)
    prices_command.import_file(written(tmp_path, "x.json", bulk([offer("ml.m5.xlarge", "0.3"), odd])), False)
    kept = written(tmp_path, "y.json", json.dumps({"PriceList": [json.dumps(odd), json.dumps(offer("ml.m5.xlarge"))]}))
    prices_command.import_file(kept, False)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "red[bold] blue" in out
    file = written(tmp_path, "[bold]it's\x1b[31m.json", bulk([offer()]))
    prices_command.diff(file, False)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "Changes, [bold]it's\ufffd[31m.json against the prices that hold now" in out


# Ctrl-C


@pytest.mark.slow
def test_ctrl_c_while_reading_leaves_the_old_file(pricing: Service, home: Path, project: Path) -> None:
    pricing.entries = [offer("ml.m5.large", "0.1")]
    refresh("sagemaker", regions=("us-east-1",))
    before = pricefiles.prices_file("sagemaker").read_bytes()
    pricing.entries = [offer(f"ml.x{number}.large", "9") for number in range(900)]
    pricing.page_size = 1
    code = "from orchestrator import prices_command as p; p.refresh(('sagemaker',), ('us-east-1',), False, None, None, False)"
    begun = pricing.requests
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: pricing.requests > begun + 3, what="a third page")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    finally:
        process.kill()
        process.wait()
    assert pricefiles.prices_file("sagemaker").read_bytes() == before
    assert sorted(path.name for path in state.prices_dir().iterdir()) == [".lock", "sagemaker.csv"]
