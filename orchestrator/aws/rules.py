"""What SageMaker would refuse of a training job, found before anything is sent: the API model's limits in our words, and
the rules that the model does not hold.

Every fault is one line with the option to change. The model's own wording is kept where there is no better one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from estimates import catalog
from orchestrator.aws import model
from orchestrator.errors import BadInput, NotInCatalog, OrchestrateError, flatten, shown

OPERATION = "CreateTrainingJob"
MAX_RUNTIME_SECONDS = 28 * 86_400
MAX_VOLUME_GB = 16_384
EXTRA = "[backend.sagemaker.extra]"
_ROLE = re.compile(r"arn:(?P<partition>aws[a-z\-]*):iam::(?P<account>\d{12}):role/(?P<path>[\w+=,.@\-/]+)", re.ASCII)
_PARTITIONS = (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov"), ("eusc-", "aws-eusc"))
_REGISTRY = re.compile(r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+/.+")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
# The option that a field comes from, by the field's path without the numbers of list members.
_OPTIONS: Mapping[str, str] = {
    "trainingJobName": "--name",
    "roleArn": "--role",
    "algorithmSpecification.trainingImage": "--image",
    "algorithmSpecification.metricDefinitions": "--metric",
    "inputDataConfig": "--data",
    "outputDataConfig.s3OutputPath": "--bucket",
    "outputDataConfig.kmsKeyId": "--kms-key",
    "resourceConfig.volumeKmsKeyId": "--kms-key",
    "resourceConfig.instanceType": "--instance",
    "resourceConfig.instanceCount": "--count",
    "resourceConfig.volumeSizeInGB": "--volume",
    "resourceConfig.keepAlivePeriodInSeconds": "--keep-alive",
    "stoppingCondition.maxRuntimeInSeconds": "--max-hours",
    "stoppingCondition.maxWaitTimeInSeconds": "--max-wait",
    "vpcConfig.subnets": "--subnet",
    "vpcConfig.securityGroupIds": "--security-group",
    "environment": "--env",
    "hyperParameters": "--hp",
    "tags": "--tag",
    "checkpointConfig.s3Uri": "--bucket",
}
_LIST_MEMBER = re.compile(r"\.\d+\.member")
_BOUND = re.compile(r"Member must have (length|value) (less|greater) than or equal to (\d+)")


def check_training_job(
    request: Mapping[str, Any], *, region: str, account: str | None = None
) -> list[OrchestrateError]:
    """Everything in *request* that the service would refuse; nothing is asked of it.

    Raises BadInput if botocore, which carries the API's model, is not installed.
    """
    found = model.violations(OPERATION, request)
    problems = list(_of_model(found))
    told = {_field(one.path) for one in found}
    rules = (
        _region(region),
        _role(request, region, account),
        _image(request, region),
        _machine(request),
        _spot(request),
        _volume(request),
        _places(request),
        _channels(request),
        _tags(request),
    )
    for rule in rules:
        # What the model has refused already is not said twice; a field that it refused may not even be readable.
        problems += [problem for field, problem in rule if not any(one.startswith(field) for one in told)]
    return list({problem.what: problem for problem in flatten(problems)}.values())


# A rule yields the field at fault, as the model's paths have it, and the error.
Found = Iterator[tuple[str, OrchestrateError]]


def _of_model(found: Sequence[model.Violation]) -> Iterator[OrchestrateError]:
    patterns = [one for one in found if "regular expression" in one.constraint]
    bounded = {one.path for one in found if one not in patterns}
    for one in found:
        if one in patterns and one.path in bounded:
            continue  # too long, and so not of the pattern: one fault
        if _field(one.path) == "resourceConfig.instanceType" and "enum" in one.constraint:
            yield _cannot_train(str(one.value))
        elif one.constraint == model.UNKNOWN:
            yield _unknown(one)
        else:
            yield _in_our_words(one)


def _in_our_words(one: model.Violation) -> OrchestrateError:
    option = _option(one.path)
    named = option if option != EXTRA else _printable(one.path)
    if one.constraint == model.NULL:
        return BadInput(f"{_printable(one.path)} is missing", hint=_hint(option))
    bound = _BOUND.search(one.constraint)
    if bound is None:
        return BadInput(f"{named}{_value(one, option)}: {_words(one, option)}", hint=_hint(option))
    most = "at most" if bound[2] == "less" else "at least"
    if isinstance(one.value, (Mapping, list, tuple)):
        return BadInput(f"{named}: {len(one.value)} given, {most} {bound[3]}", hint=_hint(option))
    unit = " characters" if bound[1] == "length" else ""
    unit = " GB" if "InGB" in one.path else " seconds" if one.path.endswith("Seconds") else unit
    return BadInput(f"{named}{_value(one, option)}: {most} {bound[3]}{unit}", hint=_hint(option))


def _value(one: model.Violation, option: str) -> str:
    """The value at fault, as it may be shown: of what may hold a secret, its name alone."""
    name = re.search(r"\.\[(.*)\]", one.path, re.DOTALL)
    if option in ("--env", "--hp"):
        return f" {shown(name[1])}" if name else ""
    return f" {one.value}" if isinstance(one.value, (int, float)) else f" {shown(one.value)}"


def _words(one: model.Violation, option: str) -> str:
    field = _field(one.path)
    if "regular expression" not in one.constraint:
        return one.constraint.replace("Member must", "must")
    if field.endswith(("s3Uri", "s3OutputPath")):
        return "not an s3:// address"
    if field.endswith("channelName"):
        return "letters, digits and . - _ only"
    words = {
        "--name": "letters, digits and inner hyphens only",
        "--env": "the name of a variable is letters, digits and _, no digit first",
        "--role": "not the whole ARN of a role, arn:aws:iam::ACCOUNT:role/NAME",
        "--tag": "letters, digits, spaces and _ . : / = + - @ only",
    }
    return words.get(option) or one.constraint.replace("Member must satisfy regular expression pattern:", "must match")


def _unknown(one: model.Violation) -> OrchestrateError:
    """A field that the API does not have, and the nearest that it has in the same place."""
    parent, _, name = one.path.rpartition(".")
    known = model.members_at(OPERATION, parent)
    names = {member[:1].lower() + member[1:]: member for member in known}
    close = difflib.get_close_matches(name.lower(), [each.lower() for each in names], n=1)
    meant = next((member for each, member in names.items() if close and each.lower() == close[0]), None)
    where = f" in {_printable(parent)}" if parent else ""
    hint = f"did you mean {meant}?" if meant else f"it has {', '.join(sorted(known))}"
    return BadInput(f"{EXTRA}: SageMaker has no field {shown(name)}{where}", hint=hint)


def _cannot_train(name: str) -> OrchestrateError:
    try:
        catalog.machine(name, cloud="sagemaker")
    except catalog.CatalogError as error:
        return NotInCatalog(error.what, hint=error.hint)
    return NotInCatalog(f"SageMaker's API does not know {shown(name)} as a training machine", hint="--instance …")


def _region(region: str) -> Found:
    known = catalog.regions("sagemaker")
    if region not in known:
        close = difflib.get_close_matches(region, known, n=1) or [catalog.DEFAULT_REGION["sagemaker"]]
        yield "region", NotInCatalog(f"SageMaker is not in region {shown(region)}", hint=f"--region {close[0]}")


def partition(region: str) -> str:
    """The part of AWS that *region* belongs to, as ARNs have it: accounts and roles of one are unknown to the others."""
    return next((name for prefix, name in _PARTITIONS if region.startswith(prefix)), "aws")


def wrong_partition(role: str, region: str) -> OrchestrateError | None:
    """What is wrong with the ARN *role* for a job in *region*, if its partition is."""
    have, need = role.split(":")[1], partition(region)
    if have == need:
        return None
    what = f"--role {shown(role)} is of AWS's partition {have}, region {region} is of {need}"
    return BadInput(what, hint=f"--role arn:{need}:iam::ACCOUNT:role/NAME of an account there, or another --region")


def _role(request: Mapping[str, Any], region: str, account: str | None) -> Found:
    role = str(request.get("RoleArn", ""))
    match = _ROLE.fullmatch(role)
    if match is None or match["path"].startswith("/") or match["path"].endswith("/"):
        hint = "--role arn:aws:iam::ACCOUNT:role/NAME, with the role's path where it has one"
        yield "roleArn", BadInput(f"--role {shown(role)} is not the whole ARN of a role", hint=hint)
    elif account is not None and match["account"] != account:
        what = f"--role is of account {match['account']}, the job's is {account}"
        yield "roleArn", BadInput(what, hint=f"--role of account {account}, or another --profile")
    elif region in catalog.regions("sagemaker") and (wrong := wrong_partition(role, region)):
        yield "roleArn", wrong


def _image(request: Mapping[str, Any], region: str) -> Found:
    specification = request.get("AlgorithmSpecification")
    image = str(_dict(specification).get("TrainingImage") or "")
    field = "algorithmSpecification.trainingImage"
    if not image:
        if not _dict(specification).get("AlgorithmName"):
            yield field, BadInput("no image to train in", hint="--image URI")
        return
    name, at, digest = image.partition("@")
    if at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        yield (
            field,
            BadInput(f"--image {shown(image)}: after @ comes sha256: and 64 hex digits", hint=f"--image {name}"),
        )
    if "://" in image or image != image.strip() or " " in image:
        yield field, BadInput(f"--image {shown(image)} is not the name of an image", hint="--image HOST/NAME:TAG")
    registry = _REGISTRY.fullmatch(name)
    if registry and registry["region"] != region:
        what = f"--image is in {registry['region']}, the job in {region}: SageMaker pulls from its own region only"
        yield field, BadInput(what, hint=f"--region {registry['region']}, or an image in {region}")


def _machine(request: Mapping[str, Any]) -> Found:
    resources = _dict(request.get("ResourceConfig"))
    grouped = any(name in resources for name in ("InstanceGroups", "InstancePreferences"))
    if not resources and "ServerlessJobConfig" not in request:
        yield "resourceConfig", BadInput("resourceConfig is missing", hint="--instance TYPE")
    elif resources and not grouped:
        name, count = resources.get("InstanceType"), resources.get("InstanceCount")
        if not name:
            yield "resourceConfig.instanceType", BadInput("no machine to train on", hint="--instance TYPE")
        if count is None or (isinstance(count, int) and count < 1):
            what = "--count 0: at least 1" if count == 0 else "resourceConfig.instanceCount is missing"
            yield "resourceConfig.instanceCount", BadInput(what, hint="--count 1")
    seconds = _seconds(request, "MaxRuntimeInSeconds")
    if seconds is not None and seconds > MAX_RUNTIME_SECONDS:
        what = f"--max-hours {seconds / 3600:g}: at most {MAX_RUNTIME_SECONDS // 3600} (28 days)"
        yield "stoppingCondition.maxRuntimeInSeconds", BadInput(what, hint="--max-hours 672, then --resume-from")


def _spot(request: Mapping[str, Any]) -> Found:
    spot = request.get("EnableManagedSpotTraining") is True
    wait, runtime = _seconds(request, "MaxWaitTimeInSeconds"), _seconds(request, "MaxRuntimeInSeconds")
    field = "stoppingCondition.maxWaitTimeInSeconds"
    if wait is not None and not spot:
        yield field, BadInput("--max-wait has no effect without --spot", hint="add --spot, or leave it out")
    if not spot:
        return
    if wait is None:
        yield field, BadInput("spot machines need a time to wait for them and run, all in all", hint="--max-wait HOURS")
    elif runtime is not None and wait < runtime:
        what = f"--max-wait ({wait / 3600:g} h) is less than --max-hours ({runtime / 3600:g} h)"
        yield field, BadInput(what, hint=f"--max-wait {runtime / 3600:g}")
    if not _dict(request.get("CheckpointConfig")).get("S3Uri"):
        what = "--spot without a place for checkpoints: a machine taken away would begin again from zero"
        yield "checkpointConfig", BadInput(what, hint=f"leave CheckpointConfig in {EXTRA} as it is, or drop --spot")
    if _dict(request.get("ResourceConfig")).get("KeepAlivePeriodInSeconds"):
        what = "--keep-alive cannot be had with --spot"
        yield "resourceConfig.keepAlivePeriodInSeconds", BadInput(what, hint="leave one of them out")


def _volume(request: Mapping[str, Any]) -> Found:
    resources = _dict(request.get("ResourceConfig"))
    volume = resources.get("VolumeSizeInGB")
    if isinstance(volume, int) and not 1 <= volume <= MAX_VOLUME_GB:
        what = f"--volume {volume}: 1 to {MAX_VOLUME_GB} GB"
        yield "resourceConfig.volumeSizeInGB", BadInput(what, hint="--volume 30")
    names = [resources.get("InstanceType")]
    names += [_dict(group).get("InstanceType") for group in _list(resources.get("InstanceGroups"))]
    known = {machine.name: machine for machine in catalog.machines("sagemaker")}
    for name in names:
        if resources.get("VolumeKmsKeyId") and name in known and known[name].local_nvme_gb:
            what = f"{name} keeps its data on local NVMe, which takes no key for a volume"
            hint = f"leave VolumeKmsKeyId out of {EXTRA}; --kms-key still covers what is uploaded"
            yield "resourceConfig.volumeKmsKeyId", BadInput(what, hint=hint)


def _places(request: Mapping[str, Any]) -> Found:
    """Addresses in S3: readable, and none of what is written where data lies."""
    output = _dict(request.get("OutputDataConfig")).get("S3OutputPath")
    written = {
        "outputDataConfig.s3OutputPath": output,
        "checkpointConfig.s3Uri": _dict(request.get("CheckpointConfig")).get("S3Uri"),
        "tensorBoardOutputConfig.s3OutputPath": _dict(request.get("TensorBoardOutputConfig")).get("S3OutputPath"),
    }
    for field, uri in written.items():
        if uri is not None and (fault := bucket_fault(str(uri))):
            yield field, BadInput(f"{_option(field)}: {fault}", hint="s3://BUCKET/KEY")
    for name, uri in _s3_inputs(request):
        if fault := bucket_fault(uri):
            hint = "--data NAME=s3://BUCKET/KEY"
            yield (
                "inputDataConfig.dataSource.s3DataSource.s3Uri",
                BadInput(f"--data {shown(name)}, {shown(uri)}: {fault}", hint=hint),
            )
            continue
        for field, place in written.items():
            if place is None or not _overlaps(uri, str(place)):
                continue
            if place == output and _in_a_run(uri, str(place), str(request.get("TrainingJobName"))):
                continue
            what = f"{field} {shown(place)} and the data of channel {shown(name)}, {shown(uri)}, lie in each other"
            yield field, BadInput(what, hint="keep data and results apart: another --data, or another --bucket")
            break


def _overlaps(one: str, other: str) -> bool:
    """Is one address the other, above it or beneath it?"""
    first, second = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return first.startswith(second) or second.startswith(first)


def _in_a_run(uri: str, output: str, job: str) -> bool:
    """Does *uri* lie in the folder of a run beneath *output*, other than where this job's own results go?"""
    folder, _, rest = uri.removeprefix(output.rstrip("/") + "/").partition("/")
    return (
        uri.startswith(output)
        and folder.startswith("orc-")
        and not (folder == job and f"{rest}/".startswith("output/"))
    )


def bucket_fault(uri: str) -> str | None:
    """What is wrong with *uri* as an address in S3; None if nothing is."""
    match = re.fullmatch(r"(?:s3|https)://([^/]*)(?:/(.*))?", uri, re.DOTALL)
    if match is None:
        return f"{shown(uri)} is not an s3:// address"
    bucket, key = match[1], match[2] or ""
    if uri.startswith("https://"):
        return None if bucket else f"{shown(uri)} names no host"
    odd = ".." in bucket or re.fullmatch(r"\d+\.\d+\.\d+\.\d+", bucket)
    reserved = bucket.startswith(("xn--", "sthree-", "amzn-s3-demo-")) or bucket.endswith(("-s3alias", "--ol-s3"))
    if not _BUCKET.fullmatch(bucket) or odd or reserved:
        return f"{shown(bucket)} cannot be the name of a bucket"
    if len(key.encode("utf-8", "surrogatepass")) > 1024:
        return "its key is over 1,024 bytes"
    return None


def _channels(request: Mapping[str, Any]) -> Found:
    names = [str(_dict(channel).get("ChannelName")) for channel in _list(request.get("InputDataConfig"))]
    for name in sorted({name for name in names if names.count(name) > 1}):
        hint = f"--data OTHER=…; code and job are taken, and {EXTRA} replaces InputDataConfig as a whole"
        yield "inputDataConfig.name", BadInput(f"--data {name} is there twice", hint=hint)
    vpc = request.get("VpcConfig")
    if vpc is not None and not (_list(_dict(vpc).get("Subnets")) and _list(_dict(vpc).get("SecurityGroupIds"))):
        yield "vpcConfig", BadInput("a VPC needs both --subnet and --security-group", hint="name both, or neither")


def _tags(request: Mapping[str, Any]) -> Found:
    names = [str(_dict(tag).get("Key")) for tag in _list(request.get("Tags"))]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "tags.name", BadInput(f"--tag {shown(name)} is there twice", hint="keep one; orchestrate-… are our own")
    for name in names:
        if name.lower().startswith("aws:"):
            yield (
                "tags.name",
                BadInput(f"--tag {shown(name)}: names that begin with aws: are AWS's own", hint="another name"),
            )


def _s3_inputs(request: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for channel in _list(request.get("InputDataConfig")):
        source = _dict(_dict(_dict(channel).get("DataSource")).get("S3DataSource"))
        if isinstance(source.get("S3Uri"), str):
            yield str(_dict(channel).get("ChannelName")), source["S3Uri"]


def _seconds(request: Mapping[str, Any], name: str) -> int | None:
    value = _dict(request.get("StoppingCondition")).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _field(path: str) -> str:
    return re.sub(r"\.\[.*\]", "", _LIST_MEMBER.sub("", path), flags=re.DOTALL)


def _option(path: str) -> str:
    """The option that *path* comes from, by the longest beginning that is known; else the settings file's table."""
    parts = _field(path).split(".")
    for length in range(len(parts), 0, -1):
        option = _OPTIONS.get(".".join(parts[:length]))
        if option:
            return option
    return EXTRA


def _printable(path: str) -> str:
    """*path*, in which the names of a map or of an unknown field may be anything."""
    return shown(path)[1:-1]


def _hint(option: str) -> str:
    return f"change {option}" if option != EXTRA else f"look at {EXTRA} in orchestrate.toml"


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
