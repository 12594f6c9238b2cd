"""What the rehearsed SageMaker refuses, and in which words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rehearsal import contract, control
from orchestrator.rehearsal.contract import Quotas, Refused, check_create
from orchestrator.rehearsal.server import Rehearsal
from tests.rehearsal.conftest import (
    BUCKET,
    IMAGE,
    REGION,
    ScriptedRunner,
    client,
    refusal,
    rehearsal,
    spot,
    training_request,
    wait_for_end,
    wait_for_secondary,
)

MACHINE = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30}


class Known:
    """An account with the default role, buckets `here` and, in eu-west-1, `there`; the only object is `here/full/a`."""

    def bucket_region(self, bucket: str) -> str | None:
        return {"here": REGION, BUCKET: REGION, "there": "eu-west-1"}.get(bucket)

    def has_objects(self, bucket: str, prefix: str) -> bool:
        return bucket == "here" and "full/a".startswith(prefix)

    def trusts_sagemaker(self, role_arn: str) -> bool:
        return role_arn == control.ROLE


def told(request: Mapping[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        check_create(request, region=REGION, account=control.ACCOUNT, stores=Known())
    assert caught.value.code == "ValidationException"
    return caught.value.message


def channel(uri: str, name: str = "train") -> dict[str, Any]:
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}}


def algorithm(**changes: Any) -> dict[str, Any]:
    return {"AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File", **changes}}


TAKEN = {
    "a plain one": training_request(),
    "a spot job": training_request(**spot()),
    "28 days": training_request(StoppingCondition={"MaxRuntimeInSeconds": 28 * 86_400}),
    "a key on a machine with EBS": training_request(ResourceConfig={**MACHINE, "VolumeKmsKeyId": "key"}),
    "no volume on a machine with NVMe": training_request(
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}
    ),
    "data": training_request(InputDataConfig=[channel("s3://here/full/"), channel("s3://here/full/a", "b")]),
    "a private registry": training_request(
        **algorithm(TrainingImage="me.example/x", TrainingImageConfig={"TrainingRepositoryAccessMode": "Vpc"})
    ),
    "an https output path": training_request(OutputDataConfig={"S3OutputPath": f"https://s3.amazonaws.com/{BUCKET}/x"}),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no algorithm": (training_request(AlgorithmSpecification=None), "AlgorithmSpecification is required"),
    "no image": (
        training_request(AlgorithmSpecification={"TrainingInputMode": "File"}),
        "Exactly one of TrainingImage and AlgorithmName",
    ),
    "an image of another region": (
        training_request(**algorithm(TrainingImage=IMAGE.replace(REGION, "eu-west-1"))),
        "is in region eu-west-1, but it must be in the region of the training job: us-east-1",
    ),
    "an image outside of ECR": (
        training_request(**algorithm(TrainingImage="pytorch:latest")),
        "Invalid training image URI",
    ),
    "a metric's broken regex": (
        training_request(**algorithm(MetricDefinitions=[{"Name": "a", "Regex": "a=("}])),
        "Invalid regular expression",
    ),
    "no machines": (training_request(ResourceConfig=None), "ResourceConfig is required"),
    "count 0": (training_request(ResourceConfig={**MACHINE, "InstanceCount": 0}), "InstanceCount of at least 1"),
    "no volume": (training_request(ResourceConfig={**MACHINE, "VolumeSizeInGB": 0}), "VolumeSizeInGB must be"),
    "a key on a machine with NVMe": (
        training_request(ResourceConfig={**MACHINE, "InstanceType": "ml.g5.xlarge", "VolumeKmsKeyId": "key"}),
        "VolumeKmsKeyId is not supported for ml.g5.xlarge",
    ),
    "spot machines that are kept": (
        training_request(**spot(ResourceConfig={**MACHINE, "KeepAlivePeriodInSeconds": 60})),
        "KeepAlivePeriodInSeconds is not supported",
    ),
    "spot without a wait": (
        training_request(EnableManagedSpotTraining=True),
        "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds",
    ),
    "a wait shorter than the run": (
        training_request(**spot(StoppingCondition={"MaxRuntimeInSeconds": 10, "MaxWaitTimeInSeconds": 9})),
        "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds",
    ),
    "a wait shorter than the default run": (
        training_request(**spot(StoppingCondition={"MaxWaitTimeInSeconds": 9})),
        "Invalid MaxWaitTimeInSeconds. It must be present",
    ),
    "a wait without spot": (
        training_request(StoppingCondition={"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 2}),
        "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true",
    ),
    "more than 28 days": (
        training_request(StoppingCondition={"MaxRuntimeInSeconds": 28 * 86_400 + 1}),
        "Invalid MaxRuntimeInSeconds 2419201",
    ),
    "no limit": (training_request(StoppingCondition=None), "StoppingCondition is required"),
    "another account's role": (
        training_request(RoleArn="arn:aws:iam::999999999999:role/x"),
        "Cross-account pass role is not allowed.",
    ),
    "a role that is not there": (
        training_request(RoleArn=f"{control.ROLE}x"),
        "Could not assume role arn:aws:iam::123456789012:role/orchestrate-rehearsalx. Please ensure that the role exists"
        " and allows principal 'sagemaker.amazonaws.com' to assume the role.",
    ),
    "an output bucket that is not there": (
        training_request(OutputDataConfig={"S3OutputPath": "s3://nobodys/x"}),
        "The specified bucket does not exist: nobodys",
    ),
    "an output bucket elsewhere": (
        training_request(OutputDataConfig={"S3OutputPath": "s3://there/x"}),
        "is in region eu-west-1, but it must be in region us-east-1",
    ),
    "a checkpoint bucket elsewhere": (
        training_request(CheckpointConfig={"S3Uri": "s3://there/x"}),
        "is in region eu-west-1",
    ),
    "a TensorBoard bucket that is not there": (
        training_request(TensorBoardOutputConfig={"S3OutputPath": "s3://nobodys/x"}),
        "does not exist",
    ),
    "data that is not there": (
        training_request(InputDataConfig=[channel("s3://here/empty/")]),
        'No S3 objects found under S3 URL "s3://here/empty/" given in input data source. Please ensure that the bucket'
        " exists in the selected region (us-east-1)",
    ),
    "data elsewhere": (training_request(InputDataConfig=[channel("s3://there/x")]), "No S3 objects found under S3 URL"),
    "a channel twice": (
        training_request(InputDataConfig=[channel("s3://here/full/"), channel("s3://here/full/")]),
        "Channel names must be unique",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_right_is_taken(case: str) -> None:
    contract.check_model("CreateTrainingJob", TAKEN[case])
    check_create(TAKEN[case], region=REGION, account=control.ACCOUNT, stores=Known())


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_model_does_not_hold_is_refused(case: str) -> None:
    request, words = REFUSED[case]
    contract.check_model("CreateTrainingJob", request)
    assert words in told(request)


@pytest.mark.parametrize(
    ("region", "partition"),
    [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eusc-de-east-1", "aws-eusc"), (REGION, "aws")],
)
def test_a_role_must_be_of_the_regions_partition(region: str, partition: str) -> None:
    for given in ("aws", "aws-cn", "aws-us-gov", "aws-eusc"):
        end = {"aws-cn": "amazonaws.com.cn", "aws-eusc": "amazonaws.eu"}.get(partition, "amazonaws.com")
        image = IMAGE.replace(f"{REGION}.amazonaws.com", f"{region}.{end}")
        arn = control.ROLE.replace("arn:aws:", f"arn:{given}:")
        request = training_request(**algorithm(TrainingImage=image), RoleArn=arn)
        said = ""
        try:
            check_create(request, region=region, account=control.ACCOUNT, stores=Known())
        except Refused as error:
            said = error.message  # of the right partition: but Known has no such role
        wrong = f"is of partition {given}, but region {region} is of {partition}."
        assert said.endswith(wrong) is (given != partition)
        assert given != partition or not said or "Could not assume role" in said


@pytest.mark.parametrize(
    ("instance_type", "nvme"),
    [
        ("ml.m5.large", False),
        ("ml.m5d.large", True),
        ("ml.c5n.xlarge", False),
        ("ml.p3.2xlarge", False),
        ("ml.p3dn.24xlarge", True),
        ("ml.p4d.24xlarge", True),
        ("ml.p5.48xlarge", True),
        ("ml.p6-b200.48xlarge", True),
        ("ml.g4dn.xlarge", True),
        ("ml.g5.xlarge", True),
        ("ml.g6e.xlarge", True),
        ("ml.trn1.2xlarge", True),
        ("ml.t3.medium", False),
    ],
)
def test_machines_with_their_own_disks_are_known(instance_type: str, nvme: bool) -> None:
    assert bool(contract.NVME.match(instance_type)) == nvme


@pytest.fixture(scope="module")
def quiet_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """One rehearsal for all calls of this file that leave nothing behind."""
    with rehearsal(tmp_path_factory.mktemp("rehearsal"), runner=ScriptedRunner(*["completed"] * 20)) as cloud:
        yield cloud


def test_the_models_limits_are_told_in_awss_words(quiet_cloud: Rehearsal) -> None:
    create = client(quiet_cloud, "sagemaker").create_training_job
    code, message = refusal(create, **training_request("a_b"))
    assert code == "ValidationException"
    assert message.startswith(
        "1 validation error detected: Value 'a_b' at 'trainingJobName' failed to satisfy constraint"
    )
    _, message = refusal(create, **training_request("x" * 64))
    assert "Member must have length less than or equal to 63" in message
    _, message = refusal(create, **training_request(ResourceConfig={**MACHINE, "InstanceType": "ml.t2.medium"}))
    assert "ml.t2.medium" in message
    assert "Member must satisfy enum value set" in message
    _, message = refusal(create, **training_request("a_b", Environment={"A": "x" * 513}))
    assert message.startswith("2 validation errors detected")
    long = algorithm(ContainerEntrypoint=["/bin/bash", "-c"], ContainerArguments=["x" * 257])
    assert "256" in refusal(create, **training_request(**long))[1]


def test_a_job_that_is_not_there_is_a_validation_error(quiet_cloud: Rehearsal) -> None:
    sagemaker = client(quiet_cloud, "sagemaker")
    for call in (sagemaker.describe_training_job, sagemaker.stop_training_job, sagemaker.delete_training_job):
        assert refusal(call, TrainingJobName="nobody") == ("ValidationException", "Requested resource not found.")


def test_an_ended_job_cannot_be_stopped(quiet_cloud: Rehearsal) -> None:
    sagemaker = client(quiet_cloud, "sagemaker")
    sagemaker.create_training_job(**training_request("ended"))
    wait_for_end(sagemaker, "ended")
    code, message = refusal(sagemaker.stop_training_job, TrainingJobName="ended")
    assert code == "ValidationException"
    assert message == "The request was rejected because the training job is in status Completed"


def test_a_role_that_sagemaker_may_not_assume_is_refused(quiet_cloud: Rehearsal) -> None:
    iam = client(quiet_cloud, "iam")
    trust = {"Effect": "Allow", "Principal": {"Service": ["ec2.amazonaws.com"]}, "Action": "sts:AssumeRole"}
    create = client(quiet_cloud, "sagemaker").create_training_job
    for name, services, taken in (
        ("ec2", ["ec2.amazonaws.com"], False),
        ("both", ["ec2.amazonaws.com", "sagemaker.amazonaws.com"], True),
    ):
        trust["Principal"] = {"Service": services}
        document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document, Path="/team/")["Role"]["Arn"]
        if taken:
            create(**training_request("trusted", RoleArn=arn))
        else:
            assert "allows principal 'sagemaker.amazonaws.com'" in refusal(create, **training_request(RoleArn=arn))[1]


def test_what_is_no_request_is_refused_and_not_a_fault_of_the_server(quiet_cloud: Rehearsal) -> None:
    import urllib.error
    import urllib.request

    scope = "AWS4-HMAC-SHA256 Credential=rehearsal/20260101/us-east-1/sagemaker/aws4_request"
    for body in (b"{", b"[]", b"\xff", b"null", b'{"TrainingJobName": 3}', b'{"TrainingJobName": null}'):
        headers = {"X-Amz-Target": "SageMaker.DescribeTrainingJob", "Authorization": scope}
        request = urllib.request.Request(quiet_cloud.url, data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        with caught.value as error:
            assert error.code == 400, body
            assert json.load(error)["__type"] in ("SerializationException", "ValidationException")


def test_a_quota_is_of_one_type_of_machine_and_counts_what_runs(tmp_path: Path) -> None:
    quotas = {"ml.p3.2xlarge": 1, "ml.p3.8xlarge": 0}
    machine = {**MACHINE, "InstanceType": "ml.p3.2xlarge"}
    with rehearsal(tmp_path, runner=ScriptedRunner("until told", "completed", "completed"), quotas=quotas) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request("first", ResourceConfig=machine))
        wait_for_secondary(sagemaker, "first", "Training")
        code, message = refusal(sagemaker.create_training_job, **training_request("second", ResourceConfig=machine))
        assert code == "ResourceLimitExceeded"
        assert message.startswith(
            "The account-level service limit 'ml.p3.2xlarge for training job usage' is 1 Instances, with current"
            " utilization of 1 Instances and a request delta of 1 Instances. Please use AWS Service Quotas to request an"
            " increase for this quota."
        )
        sagemaker.create_training_job(**training_request("other"))
        sagemaker.stop_training_job(TrainingJobName="first")
        wait_for_end(sagemaker, "first")
        sagemaker.create_training_job(**training_request("second", ResourceConfig=machine))
        none = {**MACHINE, "InstanceType": "ml.p3.8xlarge"}
        _, message = refusal(sagemaker.create_training_job, **training_request("third", **spot(ResourceConfig=none)))
        assert "'ml.p3.8xlarge for spot training job usage' is 0 Instances" in message
        wait_for_end(sagemaker, "second")


def test_two_machines_need_a_quota_of_two() -> None:
    Quotas({"ml.p3.2xlarge": 2}).check("ml.p3.2xlarge", 2, 0, spot=False)
    with pytest.raises(Refused, match="delta of 2 Instances"):
        Quotas({"ml.p3.2xlarge": 2}).check("ml.p3.2xlarge", 2, 1, spot=False)
