"""Where on SageMaker a run goes: region, account, role, bucket, image, limits and names, all decided before anything is sent."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from estimates import catalog, ceiling, images
from estimates.ceiling import Ceiling
from orchestrator import budgets
from orchestrator import spec as specs
from orchestrator.aws import rules
from orchestrator.budgets import DEFAULT_HOURS, MAX_SECONDS
from orchestrator.errors import BadInput, NotInCatalog, OrchestrateError, OverBudget, shown
from orchestrator.spec import CloudOptions, TrainingSpec

PREFIX = "orchestrate"  # everything of ours in a bucket lies beneath it
NAME_PREFIX = "orc-"
STOP_SECONDS = 120  # from SIGTERM to SIGKILL on SageMaker
GRACE_SECONDS = 110  # what the script gets of it: the rest is for the last checkpoint's way to S3
LEAST_WAIT_SECONDS = 4 * 3600
_ROLE = re.compile(r"arn:(aws[a-z\-]*):iam::(\d{12}):role/[a-zA-Z_0-9+=,.@\-_/]+")
_BUCKET = re.compile(r"(?!xn--|sthree-)(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9](?:[a-z0-9.\-]{1,61})[a-z0-9]")


@dataclass(frozen=True)
class AwsPlace:
    """All that is decided about a SageMaker job besides the run itself. endpoint: None is AWS's own."""

    region: str
    role: str
    bucket: str
    profile: str | None
    rehearsed: bool
    launch_id: str
    job_name: str
    image: str
    image_from: str
    max_seconds: int
    max_seconds_from: str
    max_wait_seconds: int | None
    options: CloudOptions
    endpoint: str | None = None

    @property
    def account(self) -> str:
        """The account that owns the role, and must own the bucket."""
        return self.role.split(":")[4]

    @property
    def run_uri(self) -> str:
        """What belongs to this run alone."""
        return f"s3://{self.bucket}/{PREFIX}/runs/{self.job_name}"

    @property
    def shared(self) -> str:
        """Where in the bucket lies what runs share: apart for each KMS key, since what lies there keeps the key it came with."""
        key = self.options.kms_key
        return PREFIX if key is None else f"{PREFIX}/kms-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def data_uri(self, digest: str) -> str:
        return f"s3://{self.bucket}/{self.shared}/data/{digest}/"


@dataclass(frozen=True)
class Stage:
    """Where a rehearsal's account stands in for the user's own where none is named."""

    role: str
    bucket: str
    region: str


def decide(
    spec: TrainingSpec,
    machine: catalog.Machine | None,
    *,
    run_id: str,
    name: str,
    stage: Stage | None,
    problems: list[OrchestrateError],
) -> AwsPlace | None:
    """The place of one run. What is missing or wrong goes to *problems*, all of it, and then the answer is None."""
    options = spec.cloud
    before = len(problems)
    region = _region(spec, options, stage, problems)
    role = _role(options, stage, region, problems)
    bucket = _bucket(options, stage, region, problems)
    image, image_from = _image(options, machine, region, problems)
    seconds, seconds_from = limit(spec, machine, region, problems)
    launch_id = run_id.removeprefix("r-") + secrets.token_hex(5)
    if len(problems) > before or not (region and role and bucket):
        return None
    return AwsPlace(
        region=region,
        role=role,
        bucket=bucket,
        profile=options.profile,
        rehearsed=spec.rehearse,
        launch_id=launch_id,
        job_name=f"{NAME_PREFIX}{_slug(name)}-{launch_id}",
        image=image,
        image_from=image_from,
        max_seconds=seconds,
        max_seconds_from=seconds_from,
        max_wait_seconds=_wait(spec, options, seconds),
        options=options,
    )


def _slug(name: str) -> str:
    """*name* as a part of a job's name: letters, digits and inner hyphens, at most 38."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[: specs.MAX_NAME].strip("-") or "run"


def _region(
    spec: TrainingSpec, options: CloudOptions, stage: Stage | None, problems: list[OrchestrateError]
) -> str | None:
    """--region, else this shell's, else the profile's; in a rehearsal that has none of these, the stage's."""
    if spec.region:
        return spec.region  # whether there is such a region was asked by plan.check
    try:
        region = region_of(None, options.profile)
    except OrchestrateError as error:
        problems.append(error)
        return None
    if region is None and stage is None:
        problems.append(BadInput("no region: neither --region nor $AWS_REGION", hint="--region us-east-1"))
    return region or (stage.region if stage else None)


def region_of(named: str | None, profile: str | None) -> str | None:
    """The region that is *named*, else this shell's, else the profile's. Raises BadInput, NotInCatalog."""
    shell = {name: os.environ[name] for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if os.environ.get(name)}
    if named is None and len(set(shell.values())) > 1:
        what = " and ".join(f"{value} ({name})" for name, value in shell.items())
        raise BadInput(f"two regions: {what}", hint=f"--region {next(iter(shell.values()))}")
    region = named or next(iter(shell.values()), None) or _profile_region(profile)
    if region is not None and region not in catalog.regions("sagemaker"):
        hint = specs.suggestion(region, catalog.regions("sagemaker"))
        raise NotInCatalog(f"SageMaker is not in region {shown(region)}", hint=hint)
    return region


def _profile_region(profile: str | None) -> str | None:
    """The region that the AWS configuration files name for *profile*, read as the AWS tools do."""
    import configparser
    from pathlib import Path

    path = Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    wanted = profile or os.environ.get("AWS_PROFILE") or "default"
    config = configparser.RawConfigParser()
    try:
        config.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # botocore will say what is wrong with it
        return None
    section = wanted if wanted == "default" else f"profile {wanted}"
    return config.get(section, "region", fallback=None)


def _role(
    options: CloudOptions, stage: Stage | None, region: str | None, problems: list[OrchestrateError]
) -> str | None:
    role = options.role or (stage.role if stage else None)
    if role is None:
        hint = "--role arn:aws:iam::ACCOUNT:role/NAME, or role in [backend.sagemaker]; --rehearse needs none"
        problems.append(BadInput("no role for the job: SageMaker runs it as an IAM role of yours", hint=hint))
        return None
    if not _ROLE.fullmatch(role):
        hint = "the whole ARN, with its path: --role arn:aws:iam::123456789012:role/NAME"
        problems.append(BadInput(f"--role {shown(role)} is not the ARN of a role", hint=hint))
        return None
    wrong = rules.wrong_partition(role, region) if region else None
    if wrong is not None:
        problems.append(wrong)
        return None
    return role


def _bucket(
    options: CloudOptions, stage: Stage | None, region: str | None, problems: list[OrchestrateError]
) -> str | None:
    bucket = options.bucket or (stage.bucket if stage else None)
    if bucket is None:
        # Never a name made up from account and region: somebody else can have taken it.
        hint = f"--bucket NAME, one of yours in {region or 'the same region'}, or bucket in [backend.sagemaker]"
        problems.append(BadInput("no bucket for code, checkpoints and results", hint=hint))
        return None
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        hint = "3 to 63 of a-z, 0-9, '-' and '.', a letter or digit at both ends"
        problems.append(BadInput(f"--bucket {shown(bucket)} cannot be a bucket's name", hint=hint))
        return None
    return bucket


def _image(
    options: CloudOptions, machine: catalog.Machine | None, region: str | None, problems: list[OrchestrateError]
) -> tuple[str, str]:
    """The container image and who chose it."""
    if options.image is not None:
        if options.torch is not None:
            problems.append(BadInput("--torch has no effect with --image", hint="leave one of them out"))
        return options.image, "named by --image"
    if machine is None or region is None:
        return "", ""  # said already
    if machine.vcpus is None:
        what = f"the hardware of {machine.name} is not known here, and so neither which image fits it"
        problems.append(NotInCatalog(what, hint="--image URI"))
        return "", ""
    try:
        found = images.find(region, gpu=machine.gpu if machine.gpu_count else None, torch=options.torch)
    except catalog.CatalogError as error:
        problems.append(NotInCatalog(error.what, hint=error.hint))
        return "", ""
    asked = "as --torch asks" if options.torch else f"the newest that runs on {machine.name}"
    return found.uri, f"PyTorch {found.torch}, {asked}" + (f" ({found.note})" if found.note else "")


def limit(
    spec: TrainingSpec, machine: catalog.Machine | None, region: str | None, problems: list[OrchestrateError]
) -> tuple[int, str]:
    """MaxRuntimeInSeconds, and where it comes from: --max-hours, else what a budget buys, else --max-wait or a day."""
    asked = budgets.asked_seconds(spec)
    wait = None if asked is not None or not spec.spot else spec.cloud.max_wait_hours
    budget = budgets.of(spec)
    held = budgets.names_of_limits(spec)
    for path in _billed_apart(spec.cloud.extra) if held else ():
        what = f"[backend.sagemaker.extra] {path} is billed apart, so {held} cannot be held"
        problems.append(OverBudget(what, hint=f"leave {path.partition('.')[0]} out, or the limit"))
    if budget is None:
        if wait is not None and wait < DEFAULT_HOURS:
            return int(wait * 3600), "--max-wait"
        day = f"no --max-hours: SageMaker's own {DEFAULT_HOURS} h"
        return (DEFAULT_HOURS * 3600, day) if asked is None else (asked, "--max-hours")
    if machine is None or region is None or region not in catalog.regions("sagemaker"):
        return 0, ""  # said already
    longest = MAX_SECONDS if wait is None else min(int(wait * 3600), MAX_SECONDS)
    most = ceiling_of(spec, machine, region)
    return budgets.hold(spec, machine, most, longest=longest, where=f" in {region}", problems=problems)


def ceiling_of(spec: TrainingSpec, machine: catalog.Machine, region: str) -> Ceiling | None:
    """The most that the request for *spec* can be billed, by the seconds of its hard stop; None: a price is not known."""
    return ceiling.of(
        machine,
        count=spec.count,
        region=region,
        spot=spec.spot,
        disk_gb=_volume_gb(spec.cloud),
        keep_alive_seconds=60 * (spec.cloud.keep_alive_minutes or 0),
        stop_seconds=STOP_SECONDS,
    )


def _volume_gb(options: CloudOptions) -> int:
    """VolumeSizeInGB of the request, in which a raw field replaces the option."""
    resources = options.extra.get("ResourceConfig")
    raw = resources.get("VolumeSizeInGB") if isinstance(resources, Mapping) else None
    return raw if isinstance(raw, int) and raw > 0 else options.volume_gb


def _billed_apart(extra: Mapping[str, Any]) -> list[str]:
    """What among the raw fields has machines of its own, which the hard stop does not end."""
    found = [name for name in ("ServerlessJobConfig",) if name in extra]
    for name in ("DebugRuleConfigurations", "ProfilerRuleConfigurations"):  # AWS's own rules cost nothing
        rules_given = extra.get(name)
        if isinstance(rules_given, list) and any(
            isinstance(it, Mapping) and "InstanceType" in it for it in rules_given
        ):
            found.append(f"{name}.InstanceType")
    resources = extra.get("ResourceConfig")
    if isinstance(resources, Mapping):
        found += [
            f"ResourceConfig.{name}" for name in ("SelectedInstanceType", "SelectedInstanceCount") if name in resources
        ]
    return found


def _wait(spec: TrainingSpec, options: CloudOptions, seconds: int) -> int | None:
    if not spec.spot:
        return None
    if options.max_wait_hours is not None:
        return min(max(int(options.max_wait_hours * 3600), seconds), MAX_SECONDS)
    return min(seconds + max(seconds, LEAST_WAIT_SECONDS), MAX_SECONDS)


def as_json(place: AwsPlace) -> Mapping[str, Any]:
    """*place* as plain data, enough to go on with the run in another process."""
    return {
        "region": place.region,
        "account": place.account,
        "role": place.role,
        "bucket": place.bucket,
        "profile": place.profile,
        "rehearsed": place.rehearsed,
        "endpoint": place.endpoint,
        "launch_id": place.launch_id,
        "job_name": place.job_name,
        "image": place.image,
        "image_from": place.image_from,
        "max_seconds": place.max_seconds,
        "max_seconds_from": place.max_seconds_from,
        "max_wait_seconds": place.max_wait_seconds,
        "run_uri": place.run_uri,
        "kms_key": place.options.kms_key,
    }
