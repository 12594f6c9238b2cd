"""What is found wrong with a request before it is sent: each fault in one line, with the option to change."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("botocore", reason="comes with the sagemaker extra")

from estimates import catalog
from orchestrator.aws import model, place, rules
from orchestrator.errors import NotInCatalog, OrchestrateError
from orchestrator.spec import CloudOptions, TrainingSpec

ACCOUNT = "123456789012"
RUN = "s3://my-bucket/orchestrate/runs/orc-mlp-0123456789abcdef0123"
GOOD: dict[str, Any] = {
    "TrainingJobName": "orc-mlp-0123456789abcdef0123",
    "RoleArn": f"arn:aws:iam::{ACCOUNT}:role/service-role/Trainer",
    "AlgorithmSpecification": {
        "TrainingImage": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.6.0-gpu-py312",
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["/bin/sh", "-c"],
        "ContainerArguments": ["exec python3 -u /opt/ml/input/data/code/bootstrap.py"],
        "MetricDefinitions": [{"Name": "loss", "Regex": "[ ]loss=([-+0-9.eEnaif]+)"}],
    },
    "InputDataConfig": [
        {
            "ChannelName": name,
            "DataSource": {
                "S3DataSource": {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated", "S3Uri": uri}
            },
            "InputMode": "File",
        }
        for name, uri in (
            ("code", "s3://my-bucket/orchestrate/code/abc/def/"),
            ("job", f"{RUN}/job/"),
            ("train", "s3://their-data/set/"),
        )
    ],
    "OutputDataConfig": {"S3OutputPath": "s3://my-bucket/orchestrate/runs"},
    "CheckpointConfig": {"S3Uri": f"{RUN}/checkpoints/", "LocalPath": "/opt/ml/checkpoints"},
    "ResourceConfig": {"InstanceType": "ml.p3.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "EnableManagedSpotTraining": False,
    "Environment": {"ORCHESTRATE_LAUNCH_ID": "0123456789abcdef0123"},
    "Tags": [{"Key": "orchestrate-launch-id", "Value": "0123456789abcdef0123"}],
}
SPOT = {"EnableManagedSpotTraining": True, "StoppingCondition.MaxWaitTimeInSeconds": 7200}


def changed(**changes: Any) -> dict[str, Any]:
    """GOOD with the fields at `A.B.0.C` set; None takes a field out."""
    request = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = request
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if value is None:
            del place[last]
        elif isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    return request


def told(request: dict[str, Any], region: str = "us-east-1") -> list[OrchestrateError]:
    return rules.check_training_job(request, region=region, account=ACCOUNT)


def test_a_good_request_is_passed() -> None:
    assert told(GOOD) == []
    assert told(changed(**SPOT)) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"TrainingJobName": "orc_mlp"}, "--name 'orc_mlp': letters, digits and inner hyphens only"),
        ({"TrainingJobName": "a" * 64}, f"--name '{'a' * 64}': at most 63 characters"),
        ({"TrainingJobName": None}, "trainingJobName is missing"),
        ({"RoleArn": "SageMakerRole"}, "--role 'SageMakerRole': at least 20 characters"),
        ({"RoleArn": "arn:aws:iam::123456789012:user/me"}, "--role 'arn:aws:iam::123456789012:user/me': not the whole"),
        (
            {"RoleArn": "arn:aws:iam::210987654321:role/r"},
            "--role is of account 210987654321, the job's is 123456789012",
        ),
        (
            {"RoleArn": "arn:aws:iam::123456789012:role//r"},
            "--role 'arn:aws:iam::123456789012:role//r' is not the whole",
        ),
        ({"AlgorithmSpecification.TrainingImage": "x" * 256}, f"--image '{'x' * 78}…: at most 255 characters"),
        (
            {
                "AlgorithmSpecification.TrainingImage": "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6"
            },
            "--image is in us-west-2, the job in us-east-1: SageMaker pulls from its own region only",
        ),
        (
            {"AlgorithmSpecification.TrainingImage": "host/name@sha256:12"},
            "--image 'host/name@sha256:12': after @ comes",
        ),
        (
            {"AlgorithmSpecification.TrainingImage": "https://host/name:1"},
            "--image 'https://host/name:1' is not the name",
        ),
        ({"AlgorithmSpecification.TrainingImage": None}, "no image to train in"),
        (
            {"AlgorithmSpecification.ContainerArguments": ["x" * 257]},
            "algorithmSpecification.containerArguments.1.member",
        ),
        (
            {"AlgorithmSpecification.MetricDefinitions": [{"Name": f"m{i}", "Regex": "x"} for i in range(41)]},
            "--metric: 41 given, at most 40",
        ),
        ({"ResourceConfig.InstanceType": "ml.t2.medium"}, "SageMaker cannot train on 'ml.t2.medium' (it serves"),
        ({"ResourceConfig.InstanceType": "p3.2xlarge"}, "'p3.2xlarge' is the name of an EC2 instance"),
        ({"ResourceConfig.InstanceType": "ml.p3.2xlage"}, "no training machine of SageMaker is called 'ml.p3.2xlage'"),
        ({"ResourceConfig.InstanceType": None}, "no machine to train on"),
        ({"ResourceConfig.InstanceCount": 0}, "--count 0: at least 1"),
        ({"ResourceConfig.InstanceCount": None}, "resourceConfig.instanceCount is missing"),
        ({"ResourceConfig": None}, "resourceConfig is missing"),
        ({"ResourceConfig.VolumeSizeInGB": 99999}, "--volume 99999: 1 to 16384 GB"),
        ({"ResourceConfig.VolumeSizeInGB": 0}, "--volume 0: 1 to 16384 GB"),
        ({"ResourceConfig.VolumeSizeInGB": -1}, "--volume -1: at least 0 GB"),
        ({"ResourceConfig.KeepAlivePeriodInSeconds": 21601}, "--keep-alive 21601: at most 21600 seconds"),
        ({"StoppingCondition.MaxRuntimeInSeconds": 2_419_201}, "--max-hours 672: at most 672 (28 days)"),
        ({"StoppingCondition.MaxWaitTimeInSeconds": 7200}, "--max-wait has no effect without --spot"),
        ({"EnableManagedSpotTraining": True}, "spot machines need a time to wait"),
        (
            {**SPOT, "StoppingCondition.MaxWaitTimeInSeconds": 1800},
            "--max-wait (0.5 h) is less than --max-hours (1 h)",
        ),
        ({**SPOT, "CheckpointConfig": None}, "--spot without a place for checkpoints"),
        ({**SPOT, "ResourceConfig.KeepAlivePeriodInSeconds": 60}, "--keep-alive cannot be had with --spot"),
        (
            {"ResourceConfig.InstanceType": "ml.g5.xlarge", "ResourceConfig.VolumeKmsKeyId": "key"},
            "ml.g5.xlarge keeps its data on local NVMe, which takes no key for a volume",
        ),
        ({"OutputDataConfig.S3OutputPath": "s3://My_Bucket/x"}, "--bucket: 'My_Bucket' cannot be the name of a bucket"),
        ({"OutputDataConfig.S3OutputPath": "file:///x"}, "--bucket 'file:///x': not an s3:// address"),
        (
            {"InputDataConfig.2.DataSource.S3DataSource.S3Uri": "s3://xn--data/x"},
            "--data 'train', 's3://xn--data/x': 'xn--data' cannot be the name of a bucket",
        ),
        (
            {"InputDataConfig.2.DataSource.S3DataSource.S3Uri": f"s3://data/{'é' * 513}"},
            "its key is over 1,024 bytes",
        ),
        (
            {"InputDataConfig.2.DataSource.S3DataSource.S3Uri": "s3://my-bucket/orchestrate"},
            "outputDataConfig.s3OutputPath 's3://my-bucket/orchestrate/runs' and the data of channel 'train'",
        ),
        (
            {"InputDataConfig.2.DataSource.S3DataSource.S3Uri": "s3://my-bucket/orchestrate/runs/data"},
            "lie in each other",
        ),
        ({"InputDataConfig.2.DataSource.S3DataSource.S3Uri": f"{RUN}/checkpoints"}, "checkpointConfig.s3Uri"),
        ({"InputDataConfig.2.DataSource.S3DataSource.S3Uri": f"{RUN}/output/"}, "outputDataConfig.s3OutputPath"),
        ({"InputDataConfig.2.ChannelName": "code"}, "--data code is there twice"),
        ({"InputDataConfig.2.ChannelName": "tr ain"}, "--data 'tr ain': letters, digits and . - _ only"),
        ({"VpcConfig.Subnets": ["subnet-1"]}, "vpcConfig.securityGroupIds is missing"),
        ({"VpcConfig.Subnets": [], "VpcConfig.SecurityGroupIds": ["sg-1"]}, "--subnet: 0 given, at least 1"),
        ({"Environment": {"A-B": "x"}}, "--env 'A-B': the name of a variable is letters, digits and _, no digit first"),
        ({"Environment": {"A": "x" * 513}}, "--env 'A': at most 512 characters"),
        ({"Environment": {f"A{i}": "x" for i in range(101)}}, "--env: 101 given, at most 100"),
        ({"HyperParameters": {f"h{i}": "x" for i in range(101)}}, "--hp: 101 given, at most 100"),
        ({"Tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}, "--tag 'a' is there twice"),
        ({"Tags": [{"Key": "AWS:cost", "Value": "1"}]}, "--tag 'AWS:cost': names that begin with aws: are AWS's own"),
        ({"Tags": [{"Key": "a", "Value": "#"}]}, "--tag '#': letters, digits, spaces and _ . : / = + - @ only"),
        ({"Tags": [{"Key": f"t{i}", "Value": "1"} for i in range(51)]}, "--tag: 51 given, at most 50"),
        ({"EnableManagedSpotTrainin": True}, "SageMaker has no field 'EnableManagedSpotTrainin'"),
        ({"EnableNetworkIsolation": "yes"}, "enableNetworkIsolation 'yes': must be of type boolean"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, str) else ",".join(value)[:60],
)
def test_a_fault_is_one_line_that_names_it(changes: dict[str, Any], what: str) -> None:
    problems = told(changed(**changes))
    assert len(problems) == 1, [problem.what for problem in problems]
    assert what in problems[0].what or problems[0].what.startswith(what)
    assert "\n" not in problems[0].what
    assert problems[0].hint


def test_all_faults_are_told_at_once_and_none_twice() -> None:
    request = changed(
        **{"TrainingJobName": "a_b", "ResourceConfig.VolumeSizeInGB": 0, "RoleArn": "r", "Tags.0.Key": "aws:x"}
    )
    whats = [problem.what for problem in told(request)]
    assert len(whats) == 4
    assert len(set(whats)) == 4


def test_an_unknown_field_is_answered_with_the_nearest_in_the_same_place() -> None:
    (problem,) = told(changed(**{"ResourceConfig.VolumeSizeGB": 30}))
    assert problem.hint == "did you mean VolumeSizeInGB?"
    (problem,) = told(changed(**{"InputDataConfig.2.DataSource.S3DataSource.S3Url": "s3://x"}))
    assert problem.hint == "did you mean S3Uri?"
    (problem,) = told(changed(enableNetworkIsolation=True))
    assert problem.hint == "did you mean EnableNetworkIsolation?"


def test_a_machine_that_cannot_train_is_answered_with_the_nearest_and_its_price() -> None:
    (problem,) = told(changed(**{"ResourceConfig.InstanceType": "ml.t2.medium"}))
    assert isinstance(problem, NotInCatalog)
    assert problem.hint is not None
    assert problem.hint.startswith("--instance ml.")
    assert "/h in us-" in problem.hint


def test_a_value_that_may_be_a_secret_is_not_repeated() -> None:
    (problem,) = told(changed(Environment={"TOKEN": "hunter2" * 100}))
    assert "hunter2" not in problem.what


def test_a_region_without_sagemaker_is_answered_with_the_nearest() -> None:
    request = changed(**{"AlgorithmSpecification.TrainingImage": "mine:1"})
    (problem,) = told(request, region="us-east-9")
    assert problem.what == "SageMaker is not in region 'us-east-9'"
    assert str(problem.hint).startswith("--region us-east-")


def partitions() -> list[tuple[str, str]]:
    """Each region of SageMaker's that the catalog has, and its partition as botocore's own data has it."""
    import botocore

    data = json.loads((Path(botocore.__file__).parent / "data" / "partitions.json").read_bytes())
    return [
        (region, each["id"])
        for region in catalog.regions("sagemaker")
        for each in data["partitions"]
        if re.match(each["regionRegex"], region)
    ]


def test_every_region_is_of_the_partition_that_botocore_says() -> None:
    found = partitions()
    assert {name for name, _ in found} == set(catalog.regions("sagemaker"))
    assert {name for _, name in found} == {"aws", "aws-cn", "aws-us-gov", "aws-eusc"}
    assert [(region, rules.partition(region)) for region, _ in found] == found


@pytest.mark.parametrize(("region", "need"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")])
def test_a_role_of_another_partition_than_the_regions_is_refused(region: str, need: str) -> None:
    image = {"AlgorithmSpecification.TrainingImage": "mine:1"}
    (problem,) = told(changed(**image), region=region)
    assert problem.what.endswith(f"is of AWS's partition aws, region {region} is of {need}")
    assert f"--role arn:{need}:iam::" in str(problem.hint)
    role = f"arn:{need}:iam::{ACCOUNT}:role/Trainer"
    assert told(changed(RoleArn=role, **image), region=region) == []
    assert len(told(changed(RoleArn=role, **image), region="us-east-1")) == 1


def test_a_role_of_another_partition_is_told_with_all_that_is_missing() -> None:
    spec = TrainingSpec(
        script="train.py", backend="sagemaker", region="cn-north-1", cloud=CloudOptions(role=GOOD["RoleArn"])
    )
    problems: list[OrchestrateError] = []
    machine = catalog.machine("ml.m5.large", cloud="sagemaker")
    assert place.decide(spec, machine, run_id="r-1", name="x", stage=None, problems=problems) is None
    assert [problem.what.partition(" ")[0] for problem in problems] == ["--role", "no"]
    assert "is of aws-cn" in problems[0].what


def test_results_of_an_earlier_run_may_be_data() -> None:
    earlier = "s3://my-bucket/orchestrate/runs/orc-mlp-ffffffffffffffffffff/output/"
    assert told(changed(**{"InputDataConfig.2.DataSource.S3DataSource.S3Uri": earlier})) == []


def test_instance_groups_need_no_type_and_no_count() -> None:
    groups = [{"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "InstanceGroupName": "a"}]
    request = changed(ResourceConfig={"InstanceGroups": groups, "VolumeSizeInGB": 30})
    assert told(request) == []
    request["ResourceConfig"]["VolumeKmsKeyId"] = "key"
    assert "local NVMe" in told(request)[0].what


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for name, item in value.items():
            found += paths(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += paths(item, (*path, str(index)))
    return found


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=300)
    | st.sampled_from(["s3://b", "a" * 600]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(paths(GOOD)), value=anything)
@example(path=("Tags", "0", "Key"), value="\ud800")
@example(path=("ResourceConfig", "InstanceCount"), value=True)
@example(path=("InputDataConfig",), value={"a": 1})
def test_what_the_rules_pass_the_model_passes_too(path: tuple[str, ...], value: Any) -> None:
    """Whatever is put into a request, the rules answer in words, and pass nothing that the API's model refuses."""
    request = copy.deepcopy(GOOD)
    place: Any = request
    for part in path[:-1]:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[int(path[-1]) if isinstance(place, list) else path[-1]] = value
    found = model.violations("CreateTrainingJob", request)
    problems = told(request)
    assert bool(problems) or not found
    for problem in problems:
        assert problem.what.isprintable()
        assert problem.hint
