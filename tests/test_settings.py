"""orchestrate.toml and the flags say the same things in the same words."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import spec as specs
from orchestrator.errors import BadInput, OrchestrateError, Problems
from orchestrator.settings import Flags, load

EVERY_OPTION = """
script = "train.py"
arguments = ["--epochs", "3", "--name=a b"]
backend = "local"
instance = "ml.m5.xlarge"
region = "us-east-1"
count = 1
processes = 2
spot = true
source_dir = "src"
name = "first-try"
allow_files = ["keys/public.pem"]

[hyperparameters]
lr = 0.10
batch_size = 1_000
amp = true
note = "as \\"typed\\""

[data]
training = "data"
sample = "sample:mnist"

[environment]
GREETING = "hello world"

[limits]
max_hours = 1.5
budget_usd = 10
grace_seconds = 5
per_run_usd = 20.50
per_month_usd = 300
confirm_above_usd = 0

[prices.discounts]
sagemaker = 0.12
"ml.p3*@us-east-1" = 0.20

[prices.contract]
"ml.p3.2xlarge@us-east-1" = 3.10
"n1-standard-8+2xT4" = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "orchestrate.toml"
    path.write_text(EVERY_OPTION)
    (tmp_path / "train.py").write_text("print()\n")
    return path


def problems(text: str, tmp_path: Path) -> list[OrchestrateError]:
    path = tmp_path / "orchestrate.toml"
    path.write_text(text)
    with pytest.raises((BadInput, Problems)) as caught:
        load(Flags(), path)
    return list(caught.value.errors) if isinstance(caught.value, Problems) else [caught.value]


def test_every_option_can_stand_in_the_file(file: Path) -> None:
    assert load(Flags(), file) == specs.TrainingSpec(
        script=str(file.parent / "train.py"),
        arguments=("--epochs", "3", "--name=a b"),
        hyperparameters=(("lr", "0.10"), ("batch_size", "1000"), ("amp", "true"), ("note", 'as "typed"')),
        backend="local",
        instance="ml.m5.xlarge",
        region="us-east-1",
        count=1,
        processes=2,
        spot=True,
        data=(("training", str(file.parent / "data")), ("sample", "sample:mnist")),
        environment=(("GREETING", "hello world"),),
        source_dir=str(file.parent / "src"),
        name="first-try",
        max_hours=Decimal("1.5"),
        budget_usd=Decimal(10),
        grace_seconds=5,
        allow_files=("keys/public.pem",),
        spending=specs.Spending(
            per_run_usd=Decimal("20.50"),
            per_month_usd=Decimal(300),
            confirm_above_usd=Decimal(0),
            discounts=(("sagemaker", Decimal("0.12")), ("ml.p3*@us-east-1", Decimal("0.20"))),
            contract=(("ml.p3.2xlarge@us-east-1", Decimal("3.10")), ("n1-standard-8+2xT4", Decimal(1))),
        ),
    )


def test_what_may_be_spent_is_kept_with_the_spec_digit_for_digit(file: Path) -> None:
    spec = load(Flags(), file)
    assert specs.as_json(spec)["spending"] == {
        "per_run_usd": "20.50",
        "per_month_usd": "300",
        "confirm_above_usd": "0",
        "discounts": {"sagemaker": "0.12", "ml.p3*@us-east-1": "0.20"},
        "contract": {"ml.p3.2xlarge@us-east-1": "3.10", "n1-standard-8+2xT4": "1"},
    }
    assert load(Flags(), None).spending == specs.Spending()
    assert specs.Spending().confirm_above_usd == 5


def test_flags_win_over_the_file_and_tables_are_joined(file: Path) -> None:
    flags = Flags(
        script="other.py", arguments=(), hyperparameters=("lr=1e-5",), data=("training=elsewhere",), processes="1",
        spot=False, max_hours="3",
    )  # fmt: skip
    spec = load(flags, file)
    assert (spec.script, spec.arguments, spec.processes, spec.spot) == ("other.py", (), 1, False)
    assert dict(spec.hyperparameters) == {"lr": "1e-5", "batch_size": "1000", "amp": "true", "note": 'as "typed"'}
    assert dict(spec.data) == {"training": "elsewhere", "sample": "sample:mnist"}
    assert (spec.max_hours, spec.budget_usd) == (Decimal(3), Decimal(10))


def test_without_a_file_the_flags_stand_alone() -> None:
    assert load(Flags(), None) == specs.TrainingSpec()


def test_a_backend_table_names_the_backend(tmp_path: Path) -> None:
    path = tmp_path / "orchestrate.toml"
    path.write_text('[backend]\nname = "sagemaker"\n')
    assert load(Flags(), path).backend == "sagemaker"


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ('instanse = "ml.m5.xlarge"', "orchestrate.toml:1: unknown key 'instanse'", "did you mean instance?"),
        ("[limits]\nmax_hour = 2", "orchestrate.toml:2: unknown key 'limits.max_hour'", "did you mean max_hours?"),
        ("\n\ncount = 0", "orchestrate.toml:3: --count 0 is too small", "--count 1"),
        ("count = 1.5", "--count '1.5' is not a whole number", "--count 1"),
        ("count = true", "--count 'True' is not a whole number", "--count 1"),
        ('spot = "yes"', "--spot must be true or false", "--spot = true"),
        ("script = 3", "script must be text", "script ="),
        ('script = ""', "script is empty", "leave script out"),
        ("arguments = '--epochs 3'", "arguments must be a list", '["--epochs", "3"]'),
        ("data = 'here'", "data must be a table", "[data]"),
        ("hyperparameters = {lr = [1, 2]}", "hyperparameters.lr must be one value", "text"),
        ("limits = 3", "limits must be a table", "[limits]"),
        ('backend = "azure"', "--backend 'azure' is not known", "one of: local, sagemaker, vertex"),
        ("[limits]\nmax_hours = nan", "--max-hours 'nan' is not a finite number", "--max-hours 2"),
        ("[limits]\nbudget_usd = -1", "--budget -1 must be above 0", "--budget 10.50"),
        (
            "[limits]\nper_run_usd = '$5'",
            "orchestrate.toml:2: per_run_usd '$5' is not a plain number",
            "per_run_usd = 10.50",
        ),
        ("[limits]\nper_month_usd = 0", "per_month_usd 0 must be above 0", "per_month_usd = 10.50"),
        ("[limits]\nper_month = 5", "unknown key 'limits.per_month'", "did you mean per_month_usd?"),
        ("[limits]\nconfirm_above_usd = -1", "confirm_above_usd -1 must be 0 or more", "confirm_above_usd = 10.50"),
        (
            "[prices.discounts]\nsagemaker = 12",
            "orchestrate.toml:2: the discount of sagemaker is 12",
            'sagemaker" = 0.12',
        ),
        ("[prices.discounts]\nsagemaker = '12 %'", "the discount of sagemaker is '12 %', not a number", "= 0.12"),
        ("[prices.discounts]\nsagemaker = -0.1", "cannot be under 0", "= 0.12"),
        ("[prices.discounts]\nsagemaker = nan", "is 'nan', not a number", "= 0.12"),
        ("[prices.discounts]\nsagemaker = true", "is 'True', not a number", "= 0.12"),
        (
            '[prices.discounts]\n"ml.p3.2xlrage" = 0.1',
            "orchestrate.toml:2: [prices.discounts] 'ml.p3.2xlrage': no training machine is called that",
            "did you mean ml.p3.2xlarge?",
        ),
        ("[prices.discounts]\n'ml.p33*' = 0.1", "no training machine is called that", "did you mean ml.p3"),
        ("[prices.discounts]\nsagemakr = 0.1", "no training machine is called that", "did you mean sagemaker?"),
        ("[prices.discounts]\n'ml.t2.medium' = 0.1", "no training machine is called that", "ml."),
        ("[prices.discounts]\n'sagemaker@us-east' = 0.1", "no region 'us-east'", "did you mean us-east-"),
        ("[prices.contract]\nsagemaker = 3", "a contract price is that of one machine", "[prices.discounts]"),
        ("[prices.contract]\n'ml.p3.2xlarge' = 0", "must be above 0", "= 1"),
        ("[prices.contract]\n'ml.p3.2xlarge' = '3.10'", "is '3.10', not a number", "= 3.10"),
        ("[prices]\ndiscount = {}", "unknown key 'prices.discount'", "did you mean discounts?"),
        ("[prices]\ndiscounts = 0.1", "prices.discounts must be a table", "sagemaker = 0.12"),
        ("prices = 3", "prices must be a table", "[prices.discounts]"),
        ("[environment]\nPATH = '/'", "--env PATH is reserved", "choose another name"),
        ("a = 1\na = 2", "orchestrate.toml: Cannot overwrite a value (at", "toml.io"),
        ("count = ", "orchestrate.toml: Invalid value (at", "toml.io"),
    ],
)
def test_a_fault_in_the_file_is_told_with_its_line_and_a_remedy(
    text: str, what: str, hint: str, tmp_path: Path
) -> None:
    (problem,) = problems(text, tmp_path)
    assert what in problem.what
    assert hint in (problem.hint or "")
    assert problem.exit_code == 2


def test_all_faults_of_file_and_flags_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "orchestrate.toml"
    path.write_text("instanse = 'x'\ncount = 0\n")
    with pytest.raises(Problems) as caught:
        load(Flags(hyperparameters=("lr",), max_hours="-1"), path)
    assert len(caught.value.errors) == 4


def test_what_is_no_settings_file_is_told(tmp_path: Path) -> None:
    for name, content in (("a", b"\xff\xfe"), ("b", b"x" * 1_000_001)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput):
            load(Flags(), tmp_path / name)
    with pytest.raises(BadInput, match="is a folder"):
        load(Flags(), tmp_path)
    with pytest.raises(BadInput, match="cannot read"):
        load(Flags(), tmp_path / "missing.toml")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_a_hyperparameter_keeps_every_character(value: str) -> None:
    try:
        spec = load(Flags(hyperparameters=(f"note={value}",)), None)
    except BadInput as error:
        assert "secret" in error.what  # noqa: PT017 - the one reason to refuse a text
    else:
        assert spec.hyperparameters == (("note", value),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./data", ("training", "./data")),
        ("validation=./val", ("validation", "./val")),
        ("./odd=name/data", ("training", "./odd=name/data")),
        ("sample:mnist", ("training", "sample:mnist")),
        ("train=sample:mnist", ("train", "sample:mnist")),
        ("s3://bucket/a=b", ("training", "s3://bucket/a=b")),
    ],
)
def test_a_channel_is_a_name_and_a_place_or_a_place_alone(text: str, expected: tuple[str, str]) -> None:
    assert specs.split_channel(text) == expected
