"""What SageMaker refuses: the service model's limits, and the rules that the model does not hold.

Written from the API's documentation and from errors that people quote, not from what our client sends: it is that client's judge.
Where no real wording is known, the message is ours, in the service's manner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

SPOT, ON_DEMAND = "spot training job usage", "training job usage"
MAX_RUNTIME_SECONDS = 28 * 24 * 3600
DEFAULT_RUNTIME_SECONDS = 24 * 3600
DEFAULT_QUOTA = (
    100  # instances of each type: far more than a new account has, so that only who asks for a quota meets one
)
MAX_VOLUME_GB = 16_384
# Machines with local NVMe disks: `d` after the generation, and whole families that have no other storage.
NVME = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|g[4-9]\w*|gr\d\w*|p[5-9][\w-]*|trn\w+|i\d\w*)\.")
REGISTRY = re.compile(r"(\d{12})\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.(?:com|com\.cn|eu)/.+")
ROLE = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/.+")
PARTITIONS = {"cn": "aws-cn", "us-gov": "aws-us-gov", "eusc": "aws-eusc"}  # of regions, by how their names begin


class Refused(Exception):
    """An error as AWS answers it: code, message, HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


def invalid(message: str) -> Refused:
    return Refused("ValidationException", message)


class Stores(Protocol):
    """What the checks ask of the account's other services."""

    def bucket_region(self, bucket: str) -> str | None: ...
    def has_objects(self, bucket: str, prefix: str) -> bool: ...
    def trusts_sagemaker(self, role_arn: str) -> bool: ...


@dataclass
class Quotas:
    """Instances that may run at once, by instance type."""

    limits: dict[str, int] = field(default_factory=dict)
    default: int = DEFAULT_QUOTA

    def check(self, instance_type: str, wanted: int, in_use: int, *, spot: bool) -> None:
        limit = self.limits.get(instance_type, self.default)
        if in_use + wanted > limit:
            raise over_quota(instance_type, limit, in_use, wanted, spot=spot)


def over_quota(instance_type: str, limit: int, in_use: int, wanted: int, *, spot: bool = False) -> Refused:
    name = f"{instance_type} for {SPOT if spot else ON_DEMAND}"
    return Refused(
        "ResourceLimitExceeded",
        f"The account-level service limit '{name}' is {limit} Instances, with current utilization of {in_use} Instances"
        f" and a request delta of {wanted} Instances. Please use AWS Service Quotas to request an increase for this"
        " quota. If AWS Service Quotas is not available, contact AWS support to request an increase for this quota.",
    )


def not_found() -> Refused:
    return invalid("Requested resource not found.")


def name_taken(arn: str) -> Refused:
    return Refused(
        "ResourceInUse",
        "Training job names must be unique within an AWS account and region, and a training job with this name already"
        f" exists ({arn})",
    )


def has_ended(status: str) -> Refused:
    return invalid(f"The request was rejected because the training job is in status {status}")


def check_model(operation: str, params: Mapping[str, Any]) -> None:
    """Lengths, patterns, enums, required members: all that botocore's model knows and its client leaves to the service."""
    from orchestrator.aws import model

    found = model.violations(operation, params)
    if found:
        raise invalid(model.aws_message(found))


def check_create(request: Mapping[str, Any], *, region: str, account: str, stores: Stores) -> None:
    """Raises Refused for the first rule that *request*, which agrees with the model, breaks."""
    if "ServerlessJobConfig" in request:
        raise invalid("ServerlessJobConfig is not imitated by this rehearsal.")
    _check_algorithm(request.get("AlgorithmSpecification"), region)
    _check_machines(request)
    _check_times(request)
    _check_role(request["RoleArn"], region, account, stores)
    _check_inputs(request, region, stores)
    _check_bucket(request["OutputDataConfig"]["S3OutputPath"], region, stores)
    for part in ("CheckpointConfig", "TensorBoardOutputConfig", "DebugHookConfig"):
        if part in request:
            uri = request[part].get("S3Uri") or request[part].get("S3OutputPath")
            _check_bucket(uri, region, stores)


def _check_algorithm(algorithm: Mapping[str, Any] | None, region: str) -> None:
    if algorithm is None:
        raise invalid("AlgorithmSpecification is required.")
    image = algorithm.get("TrainingImage")
    if (image is None) == ("AlgorithmName" not in algorithm):
        raise invalid("Exactly one of TrainingImage and AlgorithmName must be given in AlgorithmSpecification.")
    if image is None:
        raise invalid("AlgorithmName is not imitated by this rehearsal: give a TrainingImage.")
    private = algorithm.get("TrainingImageConfig", {}).get("TrainingRepositoryAccessMode") == "Vpc"
    registry = REGISTRY.fullmatch(image)
    if registry is None and not private:
        raise invalid(f"Invalid training image URI: {image}. It must be an image in an Amazon ECR repository.")
    if registry is not None and registry.group(2) != region:
        raise invalid(
            f"The repository of the training image {image} is in region {registry.group(2)},"
            f" but it must be in the region of the training job: {region}."
        )
    for definition in algorithm.get("MetricDefinitions", ()):
        try:
            re.compile(definition["Regex"])
        except re.error as error:
            raise invalid(f"Invalid regular expression in MetricDefinitions: {definition['Regex']}: {error}") from error


def machines(request: Mapping[str, Any]) -> dict[str, int]:
    """Instances by type that *request* asks for."""
    config = request.get("ResourceConfig", {})
    found: dict[str, int] = {}
    for group in config.get("InstanceGroups") or [config]:
        if "InstanceType" in group:
            found[group["InstanceType"]] = found.get(group["InstanceType"], 0) + group.get("InstanceCount", 1)
    return found


def _check_machines(request: Mapping[str, Any]) -> None:
    config = request.get("ResourceConfig")
    if config is None:
        raise invalid("ResourceConfig is required.")
    if "InstanceGroups" in config and ("InstanceType" in config or "InstanceCount" in config):
        raise invalid("InstanceType and InstanceCount cannot be given together with InstanceGroups.")
    if "InstanceGroups" in config or "InstancePreferences" in config:
        raise invalid("Only InstanceType with InstanceCount is imitated by this rehearsal.")
    if "InstanceType" not in config or config.get("InstanceCount", 0) < 1:
        raise invalid("ResourceConfig needs an InstanceType and an InstanceCount of at least 1.")
    nvme = NVME.match(config["InstanceType"])
    if not nvme and not 1 <= config.get("VolumeSizeInGB", 0) <= MAX_VOLUME_GB:
        raise invalid(f"VolumeSizeInGB must be between 1 and {MAX_VOLUME_GB}.")
    if nvme and config.get("VolumeKmsKeyId"):
        raise invalid(
            f"VolumeKmsKeyId is not supported for {config['InstanceType']}:"
            " its local NVMe storage is encrypted by a hardware module on the instance."
        )
    if request.get("EnableManagedSpotTraining") and config.get("KeepAlivePeriodInSeconds"):
        raise invalid("KeepAlivePeriodInSeconds is not supported when EnableManagedSpotTraining is set to true.")


def _check_times(request: Mapping[str, Any]) -> None:
    condition = request.get("StoppingCondition")
    if condition is None:
        raise invalid("StoppingCondition is required.")
    runtime = condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS)
    wait = condition.get("MaxWaitTimeInSeconds")
    if runtime > MAX_RUNTIME_SECONDS:
        raise invalid(f"Invalid MaxRuntimeInSeconds {runtime}. It cannot be more than {MAX_RUNTIME_SECONDS} (28 days)")
    if request.get("EnableManagedSpotTraining"):
        if wait is None or wait < runtime:
            must = "It must be present and be greater than or equal to MaxRuntimeInSeconds"
            raise invalid(f"Invalid MaxWaitTimeInSeconds. {must}")
    elif wait is not None:
        only = "It is only supported when EnableManagedSpotTraining is set to true"
        raise invalid(f"Invalid MaxWaitTimeInSeconds. {only}")


def _check_role(arn: str, region: str, account: str, stores: Stores) -> None:
    parts = ROLE.fullmatch(arn)
    if parts is None or parts.group(2) != account:
        raise invalid("Cross-account pass role is not allowed.")
    of_region = next((name for start, name in PARTITIONS.items() if region.startswith(f"{start}-")), "aws")
    if parts.group(1) != of_region:
        raise invalid(f"The role {arn} is of partition {parts.group(1)}, but region {region} is of {of_region}.")
    if not stores.trusts_sagemaker(arn):
        raise invalid(
            f"Could not assume role {arn}. Please ensure that the role exists and allows principal"
            " 'sagemaker.amazonaws.com' to assume the role."
        )


def _check_inputs(request: Mapping[str, Any], region: str, stores: Stores) -> None:
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", ())]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise invalid(f"Channel names must be unique within a training job: {', '.join(sorted(twice))}")
    for channel in request.get("InputDataConfig", ()):
        source = channel["DataSource"].get("S3DataSource")
        if source is None:
            raise invalid("Only S3DataSource is imitated by this rehearsal.")
        bucket, prefix = bucket_and_key(source["S3Uri"])
        if stores.bucket_region(bucket) != region or not stores.has_objects(bucket, prefix):
            raise invalid(
                f'No S3 objects found under S3 URL "{source["S3Uri"]}" given in input data source. Please ensure that the'
                f" bucket exists in the selected region ({region}), that objects exist under that S3 prefix, and that"
                f' the role "{request["RoleArn"]}" has "s3:ListBucket" permissions on bucket "{bucket}".'
            )


def _check_bucket(uri: str, region: str, stores: Stores) -> None:
    bucket, _ = bucket_and_key(uri)
    found = stores.bucket_region(bucket)
    if found is None:
        raise invalid(f"The specified bucket does not exist: {bucket} ({uri})")
    if found != region:
        raise invalid(f"The S3 bucket {bucket} of {uri} is in region {found}, but it must be in region {region}.")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` and `https://s3.region.amazonaws.com/bucket/key` taken apart."""
    scheme, _, rest = uri.partition("://")
    if scheme != "s3":
        rest = rest.partition("/")[2]
    bucket, _, key = rest.partition("/")
    return bucket, key
