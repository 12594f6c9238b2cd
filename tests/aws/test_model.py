"""The walker refuses what the service's own model refuses, in the service's own words."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("botocore", reason="comes with the sagemaker extra")

from orchestrator.aws import model
from orchestrator.aws.model import aws_message, violations
from orchestrator.errors import BadInput
from tests.conftest import REPOSITORY

OUTPUT = {"S3OutputPath": "s3://bucket/out"}
LEAST: dict[str, Any] = {
    "TrainingJobName": "a-b",
    "RoleArn": "arn:aws:iam::123456789012:role/r",
    "OutputDataConfig": OUTPUT,
}


def found(**fields: Any) -> list[str]:
    return [f"{one.path}: {one.constraint}" for one in violations("CreateTrainingJob", {**LEAST, **fields})]


def test_the_least_that_the_model_asks_for_is_passed() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"TrainingJobName": "a_b"},
            "trainingJobName: Member must satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
        ),
        ({"TrainingJobName": None}, "trainingJobName: Member must not be null"),
        ({"TrainingJobName": "a\n"}, "trainingJobName: Member must satisfy regular expression pattern"),
        (
            {"ResourceConfig": {"InstanceType": "ml.t2.medium", "VolumeSizeInGB": 1}},
            "resourceConfig.instanceType: Member must satisfy enum value set: [",
        ),
        (
            {"ResourceConfig": {"KeepAlivePeriodInSeconds": 21601}},
            "resourceConfig.keepAlivePeriodInSeconds: Member must have value less than or equal to 21600",
        ),
        ({"ResourceConfig": {"InstanceCount": "1"}}, "resourceConfig.instanceCount: Member must be of type integer"),
        ({"ResourceConfig": {"InstanceCount": True}}, "resourceConfig.instanceCount: Member must be of type integer"),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 0}},
            "stoppingCondition.maxRuntimeInSeconds: Member must have value greater than or equal to 1",
        ),
        (
            {"InputDataConfig": [{"ChannelName": "a b", "DataSource": {}}]},
            "inputDataConfig.1.member.channelName: Member must satisfy regular expression pattern",
        ),
        (
            {"Environment": {"KEY": "x" * 513}},
            "environment.[KEY]: Member must have length less than or equal to 512",
        ),
        ({"Environment": {"1A": ""}}, "environment.[1A]: Member must satisfy regular expression pattern"),
        ({"Nonsense": 1}, "Nonsense: Member is not known to the API"),
        ({"Environment": ["a"]}, "environment: Member must be of type map"),
        ({"EnableNetworkIsolation": "true"}, "enableNetworkIsolation: Member must be of type boolean"),
    ],
)
def test_each_kind_of_limit_is_held(fields: dict[str, Any], words: str) -> None:
    (one,) = found(**fields)
    assert one.startswith(words)


def test_a_class_of_letters_is_that_of_unicode_and_a_digit_that_of_ascii() -> None:
    """Tags take any letter of any script; an account's number takes no Arabic digits."""
    assert found(Tags=[{"Key": "ключ 鍵", "Value": "naïve 5 / x"}]) == []
    assert found(Tags=[{"Key": "a", "Value": "☃"}]) != []
    assert found(RoleArn="arn:aws:iam::١٢٣٤٥٦٧٨٩٠١٢:role/r") != []


def test_every_pattern_of_the_model_can_be_read() -> None:
    patterns = {shape["pattern"] for shape in model._shapes().values() if "pattern" in shape}
    assert len(patterns) > 200
    for pattern in patterns:
        assert model.matches(pattern, "a-☃") in (True, False)


def test_the_message_is_the_services_own() -> None:
    """Worded as in aws-samples/sagemaker-ml-workflow-with-apache-airflow#3, of another operation."""
    name = "{{ x }}" * 12
    told = aws_message(violations("CreateTrainingJob", {**LEAST, "TrainingJobName": name}))
    assert told == (
        f"2 validation errors detected: Value '{name}' at 'trainingJobName' failed to satisfy constraint: "
        f"Member must have length less than or equal to 63; Value '{name}' at 'trainingJobName' failed to satisfy "
        "constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
    )
    told = aws_message(violations("DescribeTrainingJob", {}))
    assert told == (
        "1 validation error detected: Value null at 'trainingJobName' failed to satisfy constraint: "
        "Member must not be null"
    )


def test_a_map_is_named_as_a_whole_and_once() -> None:
    """Worded as in aws/sagemaker-python-sdk#314, where the limit still was 256."""
    given = {"lr": "0.1", "labels": "x" * 2501, "more": "y" * 2501}
    told = aws_message(violations("CreateTrainingJob", {**LEAST, "HyperParameters": given}))
    assert told.startswith("1 validation error detected: Value '{lr=0.1, labels=xxx")
    assert (
        "' at 'hyperParameters' failed to satisfy constraint: Map value must satisfy constraint: [Member must have "
        in told
    )
    assert "length less than or equal to 2500, Member must have length greater than or equal to 0, " in told


def test_limits_and_names_are_the_models() -> None:
    assert "ml.p3.2xlarge" in model.enum("TrainingInstanceType")
    assert model.limit("TrainingJobName") == 63
    assert model.limit("TrainingJobName", "min") == 1
    assert model.pattern("ChannelName") == r"[A-Za-z0-9\.\-_]+"
    assert "VolumeSizeInGB" in model.members_at("CreateTrainingJob", "resourceConfig")
    assert "S3Uri" in model.members_at("CreateTrainingJob", "inputDataConfig.3.member.dataSource.s3DataSource")
    assert model.members_at("CreateTrainingJob", "no.such") == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["TrainingJobName", "ResourceConfig", "Tags", "Environment", "X"]), value=json_values)
def test_what_botocores_client_refuses_is_refused(name: str, value: Any) -> None:
    """botocore's own check knows less; what it finds wrong must be found here too. And nothing makes the walker stumble."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    shape = _service_model(ServiceModel, Loader).operation_model("CreateTrainingJob").input_shape
    params = {**LEAST, name: value}
    here = violations("CreateTrainingJob", params)
    if ParamValidator().validate(params, shape).has_errors():
        assert here


_CACHE: list[Any] = []


def _service_model(kind: Any, loader: Any) -> Any:
    if not _CACHE:
        _CACHE.append(kind(loader().load_service_model("sagemaker", "service-2")))
    return _CACHE[0]


def test_the_check_imports_no_sdk() -> None:
    code = (
        "import sys\n"
        "from orchestrator.aws import explain, model, rules\n"
        "model.violations('CreateTrainingJob', {})\n"
        "rules.check_training_job({}, region='us-east-1')\n"
        "heavy = {'boto3', 'botocore', 'sagemaker', 'moto'} & {name.split('.')[0] for name in sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_botocore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model._model.cache_clear()
    try:
        with pytest.raises(BadInput) as caught:
            violations("CreateTrainingJob", {})
    finally:
        model._model.cache_clear()
    assert caught.value.hint == "pip install 'orchestrate-ml[sagemaker]'"
