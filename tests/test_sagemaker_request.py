"""The request is a value: golden files hold exactly what `create_training_job` would be sent."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from estimates import catalog, pricebook
from estimates.pricebook import Book
from orchestrator import preparing
from orchestrator.backends.sagemaker import bootstrap_digest
from orchestrator.errors import OrchestrateError, Problems
from orchestrator.preparing import Prepared
from orchestrator.settings import Flags
from tests.conftest import REPOSITORY, Orchestrate

GOLDEN = Path(__file__).parent / "golden" / "sagemaker"
ROLE = "arn:aws:iam::111122223333:role/path/training"
BASE: dict[str, Any] = {
    "script": "train.py", "backend": "sagemaker", "instance": "ml.p3.2xlarge", "region": "us-east-1", "role": ROLE,
    "bucket": "my-bucket",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "as the article has it": {},
    "on a CPU with hours": {"instance": "ml.m5.xlarge", "max_hours": "2", "hyperparameters": ("lr=1e-5", "name=a b'\"c")},
    "with a budget": {"budget_usd": "10"},
    "spot on two machines": {"spot": True, "count": "2", "max_hours": "1", "max_wait_hours": "3"},
    "in a VPC with keys and isolation": {
        "subnets": ("subnet-0123456789abcdef0",), "security_groups": ("sg-0123456789abcdef0",),
        "kms_key": "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "network_isolation": True, "encrypt_traffic": True, "count": "2",
    },
    "warm with tags, tensorboard and metrics": {
        "keep_alive_minutes": "30", "tags": ("team=vision", "cost centre=42"), "tensorboard": True,
        "metrics": ("loss", "top5.accuracy"), "volume_gb": "100",
    },
    "with an image and data": {
        "image": "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1", "data": ("train=s3://other/set", "here=data"),
        "environment": ("NCCL_DEBUG=INFO", f"LONG={'x' * 600}"),
    },
    "in Frankfurt with an older torch": {"region": "eu-central-1", "torch": "2.6", "instance": "ml.g5.xlarge"},
}  # fmt: skip


@pytest.fixture
def folder(project: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project.parent / "none"))
    (project / "train.py").write_text("print(1)\n")
    (project / "data").mkdir()
    (project / "data" / "rows.csv").write_text("1,2\n")
    return project


def prepared(folder: Path, **options: Any) -> Prepared:
    flags = Flags(**{**BASE, **options})
    spec = preparing.read_spec(flags, folder)
    return preparing.prepare(spec, folder, confirm=lambda _: False, fetch=False)


def nameless(made: Prepared) -> str:
    """The request as text, with the words NAME and ID where this launch's stand, and BOOTSTRAP for that file's hash."""
    assert made.plan.cloud is not None
    text = json.dumps(made.request, indent=1, ensure_ascii=False).replace(bootstrap_digest()[:16], "BOOTSTRAP")
    return text.replace(made.plan.cloud.job_name, "NAME").replace(made.plan.cloud.launch_id, "ID")


@pytest.mark.parametrize("case", CASES)
def test_the_request_is_the_golden_one(case: str, folder: Path) -> None:
    path = GOLDEN / f"{case.replace(' ', '-').replace(',', '')}.json"
    text = nameless(prepared(folder, **CASES[case])) + "\n"
    if os.environ.get("ORCHESTRATE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("case", CASES)
def test_botocore_itself_takes_the_request(case: str, folder: Path) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.Session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    report = ParamValidator().validate(prepared(folder, **CASES[case]).request, model.input_shape)
    assert not report.has_errors(), report.generate_report()


def test_two_dry_runs_differ_in_the_name_only(folder: Path) -> None:
    first, second = prepared(folder), prepared(folder)
    assert first.request != second.request
    assert nameless(first) == nameless(second)
    one, other = first.plan.cloud, second.plan.cloud
    assert one is not None
    assert other is not None
    assert json.dumps(first.request).replace(one.launch_id, other.launch_id) == json.dumps(second.request)


def test_the_launch_key_tells_what_was_asked_for(folder: Path) -> None:
    key = prepared(folder).launch_key
    assert key == prepared(folder).launch_key
    others = [
        prepared(folder, hyperparameters=("lr=2",)), prepared(folder, count="2"), prepared(folder, arguments=("--x",)),
        prepared(folder, region="us-west-2"), prepared(folder, environment=("A=1",)), prepared(folder, processes="2"),
        prepared(folder, name="other"), prepared(folder, rehearse=True), prepared(folder, spot=True),
    ]  # fmt: skip
    keys = {key, *(other.launch_key for other in others)}
    (folder / "train.py").write_text("print(2)\n")
    keys.add(prepared(folder).launch_key)
    assert len(keys) == len(others) + 2


def dearer() -> Book:
    """The prices after a refresh: ml.p3.2xlarge at 7.65 USD an hour."""
    machine = catalog.machine("ml.p3.2xlarge")
    before = pricebook.shipped()
    listed = before.price(machine, "us-east-1")
    assert listed is not None
    now = dataclasses.replace(listed, usd_per_hour=2 * listed.usd_per_hour)
    return dataclasses.replace(before, machines={**before.machines, (machine.cloud, machine.name): (now,)})


@pytest.mark.parametrize(
    "options",
    [
        {"budget_usd": "10"},
        {"budget_usd": "10", "spot": True},
        {
            "budget_usd": "17",
            "spot": True,
            "max_wait_hours": "3",
        },  # bought before, and waited for no longer than asked now
        {"budget_usd": "10", "volume_gb": "500", "keep_alive_minutes": "5"},
    ],
)
def test_a_budget_asks_for_the_same_whatever_it_buys_today(folder: Path, options: dict[str, Any]) -> None:
    made = prepared(folder, **options)
    with pricebook.using(dearer()):
        later = prepared(folder, **options)
    assert later.request["StoppingCondition"] != made.request["StoppingCondition"]
    assert later.launch_key == made.launch_key


def test_other_money_or_other_hours_are_another_thing_to_ask_for(folder: Path) -> None:
    one: dict[str, Any] = {"budget_usd": "10"}
    others: list[dict[str, Any]] = [
        one, {"budget_usd": "10.01"}, {"max_hours": "1"}, {"max_hours": "2"}, {}, {**one, "spot": True},
        {**one, "spot": True, "max_wait_hours": "100"}, {**one, "spot": True, "max_wait_hours": "101"},
    ]  # fmt: skip
    assert len({prepared(folder, **other).launch_key for other in others}) == len(others)
    hours = [prepared(folder, max_hours="1", **money).launch_key for money in ({}, one)]
    assert hours[0] == hours[1]  # the request is the same, to the last field
    assert prepared(folder, budget_usd="10.00").launch_key == prepared(folder, **one).launch_key


def test_a_limit_for_every_run_is_a_budget_in_the_key_too(folder: Path) -> None:
    settings_file = folder / "orchestrate.toml"
    keys = []
    for usd in ("10", "11"):
        settings_file.write_text(f"[limits]\nper_run_usd = {usd}\n")
        keys.append(prepared_from_file(folder).launch_key)
        with pricebook.using(dearer()):
            assert prepared_from_file(folder).launch_key == keys[-1]
    assert keys[0] != keys[1]


def test_every_string_of_the_user_travels_in_the_job_file_byte_for_byte(folder: Path) -> None:
    from orchestrator.plan import job_file

    values = {
        "lr": "1e-5",
        "zero": "0.10",
        "quoted": '"x"',
        "space": " a  b ",
        "unicode": "ﬁ 训练 \u202e",
        "big": "1e400",
    }
    made = prepared(folder, hyperparameters=tuple(f"{name}={value}" for name, value in values.items()))
    assert json.loads(json.dumps(job_file(made.plan)))["hyperparameters"] == values
    assert "HyperParameters" not in made.request


def test_raw_fields_of_the_settings_file_are_merged_and_checked(folder: Path) -> None:
    (folder / "orchestrate.toml").write_text(
        "[backend]\nname = 'sagemaker'\n[backend.sagemaker.extra]\nEnableNetworkIsolation = true\n"
        "[backend.sagemaker.extra.RetryStrategy]\nMaximumRetryAttempts = 2\n"
        "[backend.sagemaker.extra.ResourceConfig]\nVolumeSizeInGB = 77\n"
    )
    spec = preparing.read_spec(Flags(**BASE), folder, folder / "orchestrate.toml")
    made = preparing.prepare(spec, folder, confirm=lambda _: False, fetch=False).request
    assert made["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert made["EnableNetworkIsolation"] is True
    assert made["ResourceConfig"]["VolumeSizeInGB"] == 77
    assert made["ResourceConfig"]["InstanceType"] == "ml.p3.2xlarge"
    (folder / "orchestrate.toml").write_text("[backend.sagemaker.extra.RetryStrategy]\nMaximumRetryAttemps = 31\n")
    with pytest.raises(OrchestrateError) as caught:
        prepared_from_file(folder)
    assert "maximumretryattemps" in str(caught.value).lower()


def prepared_from_file(folder: Path) -> Prepared:
    spec = preparing.read_spec(Flags(**BASE), folder, folder / "orchestrate.toml")
    return preparing.prepare(spec, folder, confirm=lambda _: False, fetch=False)


def test_the_command_prints_exactly_what_would_be_sent(folder: Path, orchestrate: Orchestrate) -> None:
    words = ["--backend", "sagemaker", "--instance", "ml.p3.2xlarge", "--role", ROLE, "--bucket", "my-bucket"]
    answer = orchestrate("submit", "train.py", *words, "--region", "us-east-1", "--dry-run", "--json")
    assert answer.code == 0, answer.err
    request = answer.json["request"]
    text = json.dumps(request, indent=1, ensure_ascii=False) + "\n"
    text = text.replace(request["TrainingJobName"], "NAME").replace(bootstrap_digest()[:16], "BOOTSTRAP")
    text = text.replace(request["Environment"]["ORCHESTRATE_LAUNCH_ID"], "ID")
    assert text == (GOLDEN / "as-the-article-has-it.json").read_text("utf-8")


def test_what_is_missing_is_told_all_at_once(folder: Path, orchestrate: Orchestrate) -> None:
    answer = orchestrate("submit", "train.py", "--backend", "sagemaker", "--instance", "ml.p3.2xlarge")
    assert answer.code == 2
    for words in ("no region", "no role", "no bucket", "--rehearse"):
        assert words in answer.err, answer.err


def test_a_dry_run_and_a_submit_import_no_heavy_sdk(folder: Path) -> None:
    code = (
        "import sys\nfrom orchestrator.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'sagemaker', 'moto', 'pandas', 'google'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    words = ["submit", "train.py", "--backend", "sagemaker", "--instance", "ml.p3.2xlarge", "--rehearse", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_type_that_cannot_train_is_refused_with_the_nearest_one_and_its_price(folder: Path) -> None:
    with pytest.raises(OrchestrateError) as caught:
        prepared(folder, instance="ml.t2.medium")
    faults = caught.value.errors if isinstance(caught.value, Problems) else (caught.value,)
    (fault,) = [fault for fault in faults if "ml.t2.medium" in fault.what]
    assert "cannot train" in fault.what
    assert "ml.t3.medium" in str(fault.hint)
    assert "$" in str(fault.hint)
