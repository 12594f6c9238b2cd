"""The request, a value: what `create_training_job` is sent, and the job file beside it. Pure: nothing is read or called."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from orchestrator import budgets
from orchestrator.aws.place import PREFIX, AwsPlace
from orchestrator.errors import BadInput, raise_all
from orchestrator.plan import Plan, job_file

# Started by exec, so that the container's first process is bootstrap.py: only that one is sent SIGTERM.
_ENTRYPOINT = ["/bin/sh", "-c"]
_START = 'exec "$(command -v python3 || command -v python)" -u /opt/ml/input/data/code/bootstrap.py'
# Read where neither --metric nor the script's own block names any: what scripts commonly print.
COMMON_METRICS = (
    "epoch", "loss", "accuracy", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss",
    "test_accuracy", "learning_rate", "samples_per_second",
)  # fmt: skip
_HAVE_OPTIONS = {
    "TrainingJobName": "--name",
    "RoleArn": "--role",
    "HyperParameters": "--hp",
    "InputDataConfig": "--data",
    "CheckpointConfig": "it is always on; --resume-from begins with another run's",
    "EnableManagedSpotTraining": "--spot",
    "OutputDataConfig.S3OutputPath": "--bucket",
    "ResourceConfig.InstanceType": "--instance",
    "ResourceConfig.InstanceCount": "--count",
    "ResourceConfig.InstanceGroups": "--instance and --count: the price of a group is not reckoned here",
    "ResourceConfig.InstancePreferences": "--instance A,B tries one after the other, each at its price",
    "ResourceConfig.KeepAlivePeriodInSeconds": "--keep-alive",
    "StoppingCondition.MaxRuntimeInSeconds": "--max-hours or --budget",
    "StoppingCondition.MaxWaitTimeInSeconds": "--max-wait",
    "AlgorithmSpecification.TrainingImage": "--image",
    "AlgorithmSpecification.AlgorithmName": "--image",
    "AlgorithmSpecification.ContainerEntrypoint": "the script: bootstrap.py starts it",
    "AlgorithmSpecification.ContainerArguments": "what stands behind --",
    "AlgorithmSpecification.MetricDefinitions": "--metric",
}
_FLAG = {"Environment": "env", "Tags": "tag"}
_MERGED_BY_HAND: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "Environment",
        lambda it: isinstance(it, Mapping) and all(isinstance(v, str) for v in it.values()),
        "texts by name",
    ),
    (
        "Tags",
        lambda it: (
            isinstance(it, list) and all(isinstance(tag, Mapping) and {"Key", "Value"} == set(tag) for tag in it)
        ),
        "a list of {Key, Value}",
    ),
)
MAX_ENVIRONMENT_VALUE = 512
MAX_ENVIRONMENT = 100
_PLACEHOLDER = "LAUNCH"


def training_job(plan: Plan, bootstrap_digest: str) -> dict[str, Any]:
    """Exactly what will be sent for *plan*, `[backend.sagemaker.extra]` merged in."""
    place = _place(plan)
    request: dict[str, Any] = {
        "TrainingJobName": place.job_name,
        "RoleArn": place.role,
        "AlgorithmSpecification": {
            "TrainingImage": place.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": list(_ENTRYPOINT),
            "ContainerArguments": [_START],
            "MetricDefinitions": [
                {"Name": name, "Regex": f"[ ]{name.replace('.', '[.]')}=([-+0-9.eEnaif]+)"}
                for name in place.options.metrics or plan.entrypoint.metrics or COMMON_METRICS
            ],
        },
        "InputDataConfig": _channels(plan, place, bootstrap_digest),
        "OutputDataConfig": {"S3OutputPath": f"s3://{place.bucket}/{PREFIX}/runs"},
        "CheckpointConfig": {"S3Uri": f"{place.run_uri}/checkpoints/", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {
            "InstanceType": plan.machine.name if plan.machine else "",
            "InstanceCount": plan.spec.count,
            "VolumeSizeInGB": place.options.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": place.max_seconds},
        "EnableManagedSpotTraining": plan.spec.spot,
    }
    if place.max_wait_seconds is not None:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = place.max_wait_seconds
    _add_options(request, plan, place)
    _refuse_what_has_an_option(place.options.extra)
    request = _merged(request, place.options.extra)
    return _with_identity(request, plan, place)


def _place(plan: Plan) -> AwsPlace:
    assert plan.cloud is not None, "a SageMaker plan has a place"
    return plan.cloud


def code_prefix(plan: Plan, bootstrap_digest: str) -> str:
    """The key prefix of the channel `code`: the same package and bootstrap.py, the same place."""
    return f"{_place(plan).shared}/code/{plan.package_digest}/{bootstrap_digest[:16]}/"


def _channels(plan: Plan, place: AwsPlace, bootstrap_digest: str) -> list[dict[str, Any]]:
    uris = {
        "code": f"s3://{place.bucket}/{code_prefix(plan, bootstrap_digest)}",
        "job": f"{place.run_uri}/job/",
        **dict(plan.data_uris),
    }
    source = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    return [
        {"ChannelName": name, "DataSource": {"S3DataSource": {**source, "S3Uri": uri}}, "InputMode": "File"}
        for name, uri in uris.items()
    ]


def _add_options(request: dict[str, Any], plan: Plan, place: AwsPlace) -> None:
    options = place.options
    if options.kms_key:
        request["OutputDataConfig"]["KmsKeyId"] = options.kms_key
        if plan.machine is None or not plan.machine.local_nvme_gb:  # local NVMe is encrypted by its own hardware
            request["ResourceConfig"]["VolumeKmsKeyId"] = options.kms_key
    if options.keep_alive_minutes:
        request["ResourceConfig"]["KeepAlivePeriodInSeconds"] = options.keep_alive_minutes * 60
    if options.subnets:
        request["VpcConfig"] = {"SecurityGroupIds": list(options.security_groups), "Subnets": list(options.subnets)}
    if options.network_isolation:
        request["EnableNetworkIsolation"] = True
    if options.encrypt_traffic:
        request["EnableInterContainerTrafficEncryption"] = True
    if options.tensorboard:
        local = "/opt/ml/output/data/tensorboard"  # where $AIP_TENSORBOARD_LOG_DIR points
        request["TensorBoardOutputConfig"] = {"S3OutputPath": f"{place.run_uri}/tensorboard", "LocalPath": local}


def _refuse_what_has_an_option(extra: Mapping[str, Any]) -> None:
    """Raw fields may not say what an option says: the bill, the hard stop and the run's folders are reckoned from the options."""
    given = set(extra) | {
        f"{name}.{inner}" for name, table in extra.items() if isinstance(table, Mapping) for inner in table
    }
    problems = [
        BadInput(f"[backend.sagemaker.extra] {path}: that has its own option", hint=option)
        for path, option in _HAVE_OPTIONS.items()
        if path in given
    ]
    for name, is_right, form in _MERGED_BY_HAND:
        if name in extra and not is_right(extra[name]):
            problems.append(
                BadInput(f"[backend.sagemaker.extra] {name} is not {form}", hint=f"--{_FLAG[name]} NAME=VALUE")
            )
    raise_all(problems)


def _merged(request: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """*request* with the raw fields of *extra*: tables are joined, everything else is replaced."""
    merged = copy.deepcopy(request)
    for name, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else copy.deepcopy(value)
    return merged


def _with_identity(request: dict[str, Any], plan: Plan, place: AwsPlace) -> dict[str, Any]:
    """Put what tells this launch from every other into the environment, which Describe shows, and into the tags."""
    fits = {name: text for name, text in plan.spec.environment if len(text) <= MAX_ENVIRONMENT_VALUE}
    own = {"ORCHESTRATE_LAUNCH_ID": place.launch_id, "ORCHESTRATE_LAUNCH_KEY": ""}
    extra_environment = request.get("Environment", {})
    # All of it travels in the job file; what fits stands here too, for whoever looks at the job in the console.
    shown = dict(list(fits.items())[: MAX_ENVIRONMENT - len(own) - len(extra_environment)])
    request["Environment"] = {**shown, **extra_environment, **own}
    tags = {"orchestrate-launch-id": place.launch_id, "orchestrate-launch-key": ""}
    tags["orchestrate-script"] = _tag_text(plan.entrypoint.script)
    given = [{"Key": name, "Value": text} for name, text in place.options.tags]
    request["Tags"] = [*request.get("Tags", []), *given, *({"Key": k, "Value": v} for k, v in tags.items())]
    key = launch_key(request, plan)
    request["Environment"]["ORCHESTRATE_LAUNCH_KEY"] = key
    next(tag for tag in request["Tags"] if tag["Key"] == "orchestrate-launch-key")["Value"] = key
    return request


def _tag_text(text: str) -> str:
    """*text* as a tag's value takes it."""
    return "".join(letter if letter.isalnum() or letter in " _.:/=+-@" else "_" for letter in text)[:256]


def launch_key(request: Mapping[str, Any], plan: Plan) -> str:
    """What was asked for, as 64 hex digits: the same for two runs of one command, whatever their names and today's prices."""
    place = _place(plan)
    asked = {**request, "StoppingCondition": _asked_stop(request["StoppingCondition"], plan)}
    text = json.dumps([asked, job_file(plan), plan.checkpoints_from], sort_keys=True, ensure_ascii=False)
    text = text.replace(place.launch_id, _PLACEHOLDER).replace(plan.run_id, _PLACEHOLDER)
    whole = f"{'rehearsed ' if place.rehearsed else ''}{place.account} {place.region}\n{text}"
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def _asked_stop(stop: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """*stop* as it was asked for: where a budget bought the seconds, that budget, whatever it buys today."""
    budget = budgets.of(plan.spec)
    if budget is None or plan.spec.max_hours is not None:
        return dict(stop)
    wait = plan.spec.cloud.max_wait_hours  # it can end the run before the budget does, and that hangs on the price
    bought = {"MaxRuntimeInSeconds": f"{Fraction(budget.usd)} USD"}
    if "MaxWaitTimeInSeconds" in stop:
        bought["MaxWaitTimeInSeconds"] = _PLACEHOLDER if wait is None else f"{Fraction(wait)} h"
    return {**stop, **bought}
