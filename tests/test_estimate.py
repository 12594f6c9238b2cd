"""`orchestrate estimate` and `orchestrate machines`, as they are typed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

import orchestrator
from estimates import catalog
from orchestrator import backends
from orchestrator import spec as specs
from orchestrator.cli import main
from orchestrator.errors import BadInput
from orchestrator.runs import Ledger, RunState
from orchestrator.spec import TrainingSpec
from tests.conftest import Orchestrate
from tests.test_runs import a_run

GOLDEN = Path(__file__).parent / "golden"
ARTICLE = ("estimate", "mlp", "--hours", "2", "--instance", "ml.p3.16xlarge", "--region", "us-east-1")


def golden(name: str, text: str) -> None:
    """Compare with the file of this name; ORCHESTRATE_WRITE_GOLDEN=1 writes it anew, to be read before it is committed."""
    text = re.sub(r"\b\d+ days ago", "N days ago", re.sub(r"[ ]+$", "", text, flags=re.MULTILINE))
    text = re.sub(r"prices of \d+ of", "prices of N of", text)
    if os.environ.get("ORCHESTRATE_WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


def test_the_articles_machine_for_two_hours_is_a_tree_with_date_and_source(orchestrate: Orchestrate) -> None:
    answer = orchestrate(*ARTICLE)
    assert answer.code == 0, answer.err
    golden("estimate_one.txt", answer.out)
    assert re.search(r"training +2 instance-hours +~\$28\.152 +\$56\.31", answer.out)
    assert "ML storage" in answer.out
    assert "2025-11-04" in answer.out
    assert "aws-price" in answer.out
    assert not answer.err


def test_its_document_adds_up_to_the_digit(orchestrate: Orchestrate) -> None:
    document = orchestrate(*ARTICLE, "--json").json
    (row,) = document["rows"]
    training = row["bill"][0]["lines"][0]
    assert (training["quantity"], training["price"], training["usd"]) == ("2", "28.152", "56.304")
    leaves = [part for line in row["bill"] for part in (line["lines"] or [line])]
    assert abs(sum(Decimal(part["usd"]) for part in leaves) - Decimal(row["usd"])) < Decimal("0.00001")
    assert Decimal(row["usd_low"]) < Decimal(row["usd"]) < Decimal(row["usd_high"])
    assert row["price_published"] is False
    assert "24.48" in row["price_formula"]
    assert {line["as_of"] for line in row["bill"][0]["lines"]} == {"2025-11-04"}


def test_no_machine_named_is_a_table_over_both_clouds_cheapest_first(orchestrate: Orchestrate) -> None:
    answer = orchestrate("estimate", "--hours", "2")
    assert answer.code == 0, answer.err
    golden("estimate_table.txt", answer.out)
    document = orchestrate("estimate", "--hours", "2", "--json").json
    known = [Decimal(row["usd"]) for row in document["rows"] if row["usd"] is not None]
    assert known == sorted(known)
    assert {row["cloud"] for row in document["rows"]} == {"sagemaker", "vertex"}
    assert [row["marks"] for row in document["rows"]].count(["cheapest"]) == 1
    assert document["priced"] == len(known) < document["total"] == len(document["rows"])
    assert all(row["usd"] is None for row in document["rows"][len(known) :])


def test_filters_hold_and_every_machine_of_both_clouds_is_there_with_all(orchestrate: Orchestrate) -> None:
    def rows(*words: str) -> list[dict[str, str]]:
        answer = orchestrate("estimate", "--hours", "1", "--csv", *words)
        assert answer.code == 0, answer.err
        return list(csv.DictReader(io.StringIO(answer.out)))

    assert {row["gpu"] for row in rows("--gpu", "a100")} == {"A100"}
    assert {row["gpu"] for row in rows("--gpu", "none")} == {""}
    assert {row["cloud"] for row in rows("--backend", "vertex")} == {"vertex"}
    assert {row["region"] for row in rows("--region", "eu-west-1")} == {"eu-west-1"}
    both = {(row["cloud"], row["region"]) for row in rows("--region", "eu-west-1", "--region", "europe-west4")}
    assert both == {("sagemaker", "eu-west-1"), ("vertex", "europe-west4")}
    cheap = rows("--max-usd", "1.50")
    assert cheap
    assert all(Decimal(row["usd"]) <= Decimal("1.50") for row in cheap)
    everything = {row["machine"] for row in rows("--all")}
    assert len({name for name in everything if name.startswith("ml.")}) == 225
    assert {"n1-standard-1", "n1-standard-8+V100", "ml.trn2.48xlarge"} <= everything


def test_several_machines_of_both_clouds_by_name(orchestrate: Orchestrate) -> None:
    document = orchestrate(
        "estimate", "--hours", "1", "--instance", "ml.p3.2xlarge,vertex:n1-standard-8+V100", "--json"
    ).json
    assert {row["machine"] for row in document["rows"]} == {"ml.p3.2xlarge", "n1-standard-8+V100"}


def test_hours_come_from_the_scripts_own_earlier_runs_and_from_what_was_billed(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text("print('hello')\n")
    began, ended = "2026-11-01T10:00:00.000+00:00", "2026-11-01T11:00:00.000+00:00"
    key = str((project / "train.py").resolve())
    local = replace(
        a_run("r-0000000001"), script_key=key, state=RunState.SUCCEEDED, started_at=began, ended_at=ended,
        spec={"arguments": [], "count": 1, "spot": False},
    )  # fmt: skip
    cloud = replace(
        local, id="r-0000000002", backend="sagemaker", billable_seconds=1800, plan={"machine": {"name": "ml.g5.xlarge"}}
    )
    rehearsed = replace(cloud, id="r-0000000003", billable_seconds=1, rehearsed=True)
    with Ledger.open(home / "ledger.sqlite") as ledger:
        for run in (local, cloud, rehearsed):
            ledger.insert(run)
    rows = {row["machine"]: row for row in orchestrate("estimate", "train.py", "--json").json["rows"]}
    assert rows["ml.g5.xlarge"]["hours"] == "0.5"
    assert "as billed" in rows["ml.g5.xlarge"]["hours_from"]
    assert rows["ml.p3.2xlarge"]["hours"] == "1"
    assert "not predicted" in rows["ml.p3.2xlarge"]["hours_from"]
    assert rows["ml.g5.xlarge"]["marks"] == ["fastest"]
    one = orchestrate("estimate", "train.py", "--instance", "ml.g5.xlarge", "--json").json["rows"][0]
    assert [line["what"] for line in one["bill"][0]["lines"]] == ["training, by what earlier runs were billed"]
    other = orchestrate("estimate", "train.py", "--json", "--", "--epochs", "9").json
    assert other["hours_known"] is False


def test_without_hours_and_earlier_runs_it_is_priced_for_an_hour_and_says_so(
    orchestrate: Orchestrate, project: Path
) -> None:
    answer = orchestrate("estimate", "mlp", "--instance", "ml.m5.xlarge")
    assert answer.code == 0
    assert "not known: priced for one hour" in answer.out
    assert "--hours 2" in answer.out


def test_own_prices_stand_in_the_settings_file_beside_the_list_price(orchestrate: Orchestrate, project: Path) -> None:
    (project / "orchestrate.toml").write_text(
        '[prices.discounts]\nsagemaker = 0.2\n\n[prices.contract]\n"ml.g5.xlarge@us-east-1" = 1.10\n'
    )
    one = orchestrate("estimate", "mlp", "--hours", "1", "--instance", "ml.p3.2xlarge")
    assert one.code == 0, one.err
    assert "$3.06" in one.out
    assert re.search(r"list price +\$3\.825", one.out)
    document = orchestrate("estimate", "mlp", "--hours", "1", "--instance", "ml.g5.xlarge", "--json").json
    assert document["rows"][0]["price_usd_per_hour"] == "1.10"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--hours", "two"), 2, "--hours 'two'"),
        (("--hours", "-1"), 2, "above 0"),
        (("--hours", "1", "--instance", "ml.p3.3xlarge"), 3, "--instance ml.p3."),
        (("--hours", "1", "--instance", "ml.t2.medium"), 3, "cannot train"),
        (("--hours", "1", "--instance", "n1-standard-8+H100"), 3, "H100"),
        (("--hours", "1", "--region", "us-esat-1"), 3, "did you mean us-"),
        (("--hours", "1", "--region", "us-east-1", "--region", "us-west-2"), 2, "two regions"),
        (("--hours", "1", "--backend", "azure"), 2, "azure"),
        (("--hours", "1", "--gpu", "A1000"), 3, "A100"),
        (("--hours", "1", "--max-usd", "$5"), 2, "--max-usd"),
        (("--hours", "1", "--json", "--csv"), 2, "--csv"),
        (("nowhere.py", "--hours", "1"), 2, "nowhere.py"),
        (("--hours", "1", "--instance", "ml.p3.2xlarge", "--region", "us-central1"), 2, "a machine of SageMaker"),
        (("--hours", "1", "--instance", ","), 2, "--instance ',' names no machine"),
        (("--hours", "1", "--gpu", "a100x"), 3, "did you mean A100?"),
        (("--hours", "1", "--data-region", "mars"), 3, "--data-region 'mars' is no region of SageMaker or Vertex AI"),
        (("--hours", "1", "--backend", "vertex", "--data-region", "us-east-1"), 3, "did you mean us-east1?"),
        (("--hours", "1", "--instance", "ml.p3.2xlarge", "--data-region", "us-central1"), 3, "no region of SageMaker"),
        (("--hours", "1", "--spot", "--keep-alive", "5"), 2, "--keep-alive cannot be had with --spot"),
    ],
)
@pytest.mark.usefixtures("home", "project")
def test_what_is_typed_wrong_is_one_line_and_a_remedy(
    words: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    assert told in err
    assert len(err.strip().splitlines()) <= 2
    assert not out or "--json" in words


def test_all_that_is_wrong_is_told_at_once(orchestrate: Orchestrate) -> None:
    answer = orchestrate("estimate", "--hours", "x", "--gpu", "Z9", "--region", "mars", "--max-usd", "0")
    assert answer.code == 2
    for word in ("--hours", "Z9", "mars", "--max-usd"):
        assert word in answer.err, answer.err


def test_machines_lists_hardware_prices_and_dates(orchestrate: Orchestrate) -> None:
    answer = orchestrate("machines", "--gpu", "V100")
    assert answer.code == 0, answer.err
    golden("machines_v100.txt", answer.out)
    listed = orchestrate("machines", "--json").json
    assert len([entry for entry in listed if entry["cloud"] == "sagemaker"]) == 225
    assert len([entry for entry in listed if entry["cloud"] == "vertex" and "+" not in entry["machine"]]) == 92
    for entry in listed:
        assert (entry["usd_per_hour"] is None) == (entry["as_of"] is None) == (entry["source"] is None)
        assert entry["usd_per_hour"] is None or Decimal(entry["usd_per_hour"]) > 0
        assert entry["published"] is not False or entry["formula"]


def test_machines_tells_all_of_one(orchestrate: Orchestrate) -> None:
    answer = orchestrate("machines", "ml.p3.2xlarge")
    assert answer.code == 0, answer.err
    assert "Every reading of its price" in answer.out
    assert "withdrawn" in answer.out
    assert len(orchestrate("machines", "ml.p3.2xlarge", "--json").json["prices"]) >= 3
    wrong = orchestrate("machines", "ml.t2.medium")
    assert (wrong.code, "cannot train" in wrong.err) == (3, True)


def test_machines_that_cost_too_much_an_hour_are_left_out(orchestrate: Orchestrate) -> None:
    rows = list(csv.DictReader(io.StringIO(orchestrate("machines", "--max-usd", "0.5", "--csv").out)))
    assert rows
    assert all(Decimal(row["usd_per_hour"]) <= Decimal("0.5") for row in rows)


@pytest.mark.usefixtures("home", "project")
def test_from_python_it_is_the_same_document(orchestrate: Orchestrate) -> None:
    told = orchestrator.estimate("mlp", hours=2, instance="ml.p3.16xlarge", regions=["us-east-1"])
    typed = orchestrate(*ARTICLE, "--json").json
    assert {**told, "made_at": None} == {**typed, "made_at": None}


def test_the_next_submit_on_the_same_machine_starts_from_what_was_billed(
    orchestrate: Orchestrate, project: Path, home: Path
) -> None:
    (project / "train.py").write_text("print('hello')\n")
    submit = (
        "submit", "train.py", "--backend", "sagemaker", "--instance", "ml.g5.xlarge", "--region", "us-east-1",
        "--role", "arn:aws:iam::123456789012:role/training", "--bucket", "a-bucket-of-mine", "--dry-run", "--json",
    )  # fmt: skip
    first = orchestrate(*submit).json["plan"]
    assert first["seconds_from"].startswith("at most")
    asked = TrainingSpec(script="train.py", backend="sagemaker", instance="ml.g5.xlarge")
    done = replace(
        a_run("r-0000000001"), backend="sagemaker", script_key=str((project / "train.py").resolve()),
        spec=specs.as_json(asked), plan={"machine": {"name": "ml.g5.xlarge"}}, state=RunState.SUCCEEDED,
        started_at="2026-11-01T10:00:00.000+00:00", ended_at="2026-11-01T11:00:00.000+00:00", billable_seconds=1800,
    )  # fmt: skip
    with Ledger.open(home / "ledger.sqlite") as ledger:
        ledger.insert(done)
    then = orchestrate(*submit).json["plan"]
    assert (then["seconds"], then["seconds_from"]) == (1800, "as the last run on ml.g5.xlarge, as billed")
    other = orchestrate(*submit, "--", "--epochs", "9").json["plan"]
    assert other["seconds_from"].startswith("at most")


Told = pytest.CaptureFixture[str]


def told(capsys: Told, *words: str) -> str:
    """What the command prints on stdout, typed in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out


def next_of(text: str) -> tuple[str, str]:
    """The two commands of the last line."""
    assert text.splitlines()[-1].startswith("next: "), text
    first, _, other = text.splitlines()[-1].removeprefix("next: ").partition("   or")
    return first, other.removeprefix(": ")


@pytest.fixture
def subfolder(home: Path, project: Path) -> Path:
    (project / "a folder").mkdir()
    (project / "a folder" / "train.py").write_text("print('hello')\n")
    return project


@pytest.mark.usefixtures("home")
def test_a_page_into_a_folder_a_device_or_a_missing_place_is_refused_with_all_else(project: Path, capsys: Told) -> None:
    (project / "a.txt").write_text("")
    for place, said in ((".", "is a folder"), ("a.txt/x.html", "Not a directory"), ("no/x.html", "No such file"),
                        ("/dev/null", "no ordinary file")):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(["estimate", "--hours", "1", "--html", place, "--gpu", "Z9"])
        err = capsys.readouterr().err
        assert ended.value.code == 2, err
        assert f"--html {place}" in err
        assert said in err
        assert "Z9" in err
        assert "Traceback" not in err
    assert sorted(path.name for path in project.iterdir()) == ["a.txt"]


@pytest.mark.usefixtures("home")
def test_the_wall_clock_of_earlier_jobs_gets_no_image_pull_added(project: Path, home: Path, capsys: Told) -> None:
    (project / "train.py").write_text("print('hello')\n")
    earlier = replace(
        a_run("r-0000000001"), backend="sagemaker", script_key=str((project / "train.py").resolve()),
        state=RunState.SUCCEEDED, started_at="2026-11-01T10:00:00.000+00:00", ended_at="2026-11-01T11:00:00.000+00:00",
        spec={"arguments": [], "count": 2, "spot": True}, plan={"machine": {"name": "ml.g5.xlarge"}}, billable_seconds=9,
    )  # fmt: skip
    with Ledger.open(home / "ledger.sqlite") as ledger:
        ledger.insert(earlier)
    for machine in ("ml.g5.xlarge", "ml.p3.2xlarge"):
        (row,) = json.loads(told(capsys, "estimate", "train.py", "--instance", machine, "--json"))["rows"]
        parts = [(line["what"], line["quantity"]) for line in row["bill"][0]["lines"]]
        assert parts == [("training, by the wall clock of earlier runs", "1")]


@pytest.mark.usefixtures("home", "project")
def test_of_an_unknown_region_five_near_ones_are_told(capsys: Told) -> None:
    with pytest.raises(SystemExit):
        main(["estimate", "--hours", "1", "--region", "mars"])
    hint = capsys.readouterr().err.splitlines()[-1]
    regions = {*catalog.regions("sagemaker"), *catalog.regions("vertex")}
    assert len([word for word in re.split(r"[ ,]+", hint) if word in regions]) == 5


@pytest.mark.usefixtures("subfolder")
def test_the_next_submit_and_the_next_estimate_are_what_was_typed_and_work(capsys: Told) -> None:
    options = ("--count", "2", "--volume", "100", "--spot", "--data", "training=a folder")
    behind = ("--", "--name", "it's $HOME", "--hours", "9")
    one = ("--hours", "0.5", "--instance", "ml.g5.xlarge", "--region", "us-east-1")
    submit, table = next_of(told(capsys, "estimate", "a folder/train.py", *one, *options, *behind))
    words = shlex.split(submit)
    place = words.index("--")
    assert tuple(words[place:]) == behind
    assert words[:3] == ["orchestrate", "submit", "a folder/train.py"]
    assert {*one[2:], *options, "sagemaker"} <= set(words[:place])
    known = ("--role", "arn:aws:iam::123456789012:role/training", "--bucket", "a-bucket-of-mine", "--dry-run", "--json")
    planned = told(capsys, *words[1:place], *known, *behind)
    assert "a folder/train.py" not in planned  # it is the script of that folder
    again = next_of(told(capsys, *shlex.split(table)[1:]))[0]
    assert shlex.split(again)[:5] == ["orchestrate", "estimate", "a folder/train.py", "--hours", "0.5"]
    assert "--spot" in shlex.split(again)
    assert tuple(shlex.split(again)[-5:]) == behind
    assert next_of(told(capsys, *shlex.split(again)[1:]))[0].startswith("orchestrate submit 'a folder/train.py'")


@pytest.mark.usefixtures("subfolder")
def test_the_next_budget_is_enough_for_the_whole_time_also_on_spot_and_under_a_discount(
    capsys: Told, subfolder: Path
) -> None:
    (subfolder / "orchestrate.toml").write_text("[prices.discounts]\nsagemaker = 0.9\n")
    known = ("--role", "arn:aws:iam::123456789012:role/training", "--bucket", "a-bucket-of-mine", "--dry-run", "--json")
    for market in ("--spot", "--no-spot"):
        one = ("--hours", "10", "--instance", "ml.p3.2xlarge", "--region", "us-east-1", market)
        submit, _ = next_of(told(capsys, "estimate", "a folder/train.py", *one))
        planned = told(capsys, *shlex.split(submit)[1:], *known)
        stop = re.search(r'"MaxRuntimeInSeconds": (\d+)', planned)
        assert stop is not None
        assert int(stop[1]) >= 10 * 3600


@pytest.mark.usefixtures("home", "project")
@pytest.mark.parametrize(("cloud", "machine"), [("sagemaker", "ml.g5.xlarge"), ("vertex", "g2-standard-4")])
def test_a_submit_is_named_only_where_it_can_launch(cloud: str, machine: str, capsys: Told) -> None:
    typed = ("estimate", "--hours", "1", "--instance", machine, "--region", catalog.DEFAULT_REGION[cloud])
    first, other = next_of(told(capsys, *typed))
    try:
        backends.load(cloud)
    except BadInput:
        assert "submit" not in first + other
        assert other == f"orchestrate machines {machine}"
        assert next_of(told(capsys, *shlex.split(first)[1:]))
        assert f"machine        {machine}" in told(capsys, *shlex.split(other)[1:])
    else:
        assert first.startswith(f"orchestrate submit --backend {cloud} --instance {machine}")


@pytest.mark.usefixtures("home", "project")
def test_without_a_price_the_next_is_to_read_prices_and_on_spot_the_estimate_on_demand(capsys: Told) -> None:
    text = told(capsys, "estimate", "--hours", "1", "--instance", "n1-standard-4+T4", "--spot")
    assert "no spot price is known" in text
    first, other = next_of(text)
    assert other == "orchestrate prices refresh --cloud vertex"
    assert "total" in told(capsys, *shlex.split(first)[1:])
    unknown = told(capsys, "estimate", "--hours", "1", "--instance", "ml.trn2.48xlarge", "--region", "us-east-1")
    assert next_of(unknown)[0] == "orchestrate prices refresh --cloud sagemaker --region us-east-1"
    assert next_of(told(capsys, "machines", "ml.trn2.48xlarge"))[0] == "orchestrate prices refresh --cloud sagemaker"


@pytest.mark.usefixtures("home", "project")
def test_where_no_machine_fits_the_next_estimate_has_no_filter(capsys: Told) -> None:
    text = told(capsys, "estimate", "--hours", "1", "--max-usd", "0.0001")
    assert next_of(text)[0] == "orchestrate estimate --hours 1 --all"


@pytest.mark.usefixtures("home", "project")
def test_a_free_tier_that_is_none_is_said(capsys: Told) -> None:
    def said(*words: str) -> str:
        return told(capsys, "estimate", "--hours", "1", "--free-tier", "5", *words)

    assert "lowers no bill here: ml.p3.2xlarge has no free tier" in said("--instance", "ml.p3.2xlarge")
    assert "lowers no bill here: none is known for spot" in said("--instance", "ml.m5.xlarge", "--spot")
    assert "lowers no bill here: none of these machines has a free tier" in said("--backend", "vertex")
    assert "lowers the bill of ml.m5.xlarge alone" in said("--instance", "ml.m5.xlarge,ml.p3.2xlarge")
    assert "lowers" not in said("--instance", "ml.m5.xlarge")
    assert any("none is known for spot" in note for note in json.loads(said("--spot", "--json"))["notes"])


@pytest.mark.usefixtures("home", "project")
def test_a_table_shows_what_is_expected_on_both_markets_and_counts_in_good_english(capsys: Told) -> None:
    typed = ("estimate", "--hours", "1", "--instance", "ml.t3.medium", "--all")
    text = told(capsys, *typed)
    (row,) = json.loads(told(capsys, *typed, "--json"))["rows"]
    shown = [
        Decimal(amount) for amount in re.findall(r"~\$([\d.]+)", next(s for s in text.splitlines() if "ml.t3" in s))
    ]
    assert len(shown) == 2
    for amount, exact in zip(shown, (row["usd"], row["usd_spot"]), strict=True):
        assert 0 <= amount - Decimal(exact) <= Decimal("0.0001")
    assert "1 machine with a price" in text
    assert "~ 1 price is derived" in text
    assert "the price of ml.t3.medium is over 60 days old, of 20" in text
    assert "low, high and a bill's parts" in text


@pytest.mark.usefixtures("home", "project")
def test_machines_speak_of_sagemakers_spot_where_one_is_listed_and_keep_the_region(capsys: Told) -> None:
    words = "SageMaker has no spot prices"
    assert words not in told(capsys, "machines", "--backend", "vertex", "--gpu", "T4")
    text = told(capsys, "machines", "--gpu", "V100", "--region", "us-east-1", "--max-usd", "5")
    assert words in text
    assert "1 machine with a price" in text
    one, table = next_of(text)
    assert one == "orchestrate machines ml.p3.2xlarge --region us-east-1"
    assert table == "orchestrate estimate --hours 2 --gpu V100 --region us-east-1"
    alone = next_of(told(capsys, *shlex.split(one)[1:]))[0]
    assert alone == "orchestrate estimate --hours 2 --instance ml.p3.2xlarge --region us-east-1"
    assert "total" in told(capsys, *shlex.split(alone)[1:])


def test_a_suggestion_takes_upper_and_lower_case_for_the_same() -> None:
    assert specs.suggestion("a100x", ("A100", "H100")) == "did you mean A100?"
    assert specs.suggestion("US-EAST-1", ("us-east-1", "us-west-2")) == "did you mean us-east-1?"
    assert specs.suggestion("zzzz", ("A100", "H100")) == "one of: A100, H100"
