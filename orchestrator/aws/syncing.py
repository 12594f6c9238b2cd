"""Bring runs that were made elsewhere, and carry our tags, into this ledger."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any

from estimates import catalog, cost
from orchestrator import plan, state
from orchestrator.aws import explain, following, jobs
from orchestrator.aws.client import Aws
from orchestrator.aws.explain import Kind
from orchestrator.aws.place import GRACE_SECONDS, NAME_PREFIX
from orchestrator.runs import Ledger, Run, RunState

_LAUNCH_ID = re.compile(r"[0-9a-f]{20}")
MOST_JOBS = 200  # the newest; listing is limited to two calls a second for a whole account


def bring_in(aws: Aws, ledger: Ledger, *, rehearsed: bool) -> list[str]:
    """Write a row for each training job of ours that *ledger* does not know; returns the new runs' ids."""
    with state.locked(state.launch_lock("sync")):  # two at once would write the same rows
        return _bring_in(aws, ledger, rehearsed=rehearsed)


def _bring_in(aws: Aws, ledger: Ledger, *, rehearsed: bool) -> list[str]:
    known = {run.remote_id for run in ledger.newest()}
    brought = []
    for name in reversed(list(_names(aws))):  # the oldest first, as they were made
        if name in known:
            continue
        described = jobs.describe(aws, name)
        environment = {} if described is None else described.get("Environment", {})
        launch_id = environment.get("ORCHESTRATE_LAUNCH_ID", "")
        if described is None or not _LAUNCH_ID.fullmatch(launch_id) or not name.endswith(launch_id):
            continue
        run = _row(aws, described, launch_id, rehearsed)
        ledger.insert(run)
        ledger.mark_told(run.id)
        following.look(
            aws, run, ledger, catch_up=lambda: None
        )  # the lines of 200 jobs are fetched when one asks for them
        brought.append(run.id)
    return brought


def _names(aws: Aws) -> Iterator[str]:
    pages = aws.client("sagemaker").get_paginator("list_training_jobs")
    config = {"MaxItems": MOST_JOBS, "PageSize": 100}
    asked = {"NameContains": NAME_PREFIX, "SortBy": "CreationTime", "SortOrder": "Descending"}
    for page in pages.paginate(**asked, PaginationConfig=config):
        yield from (job["TrainingJobName"] for job in page["TrainingJobSummaries"])


def _script(aws: Aws, described: Mapping[str, Any]) -> str:
    """The script's name, from the job's tags; "?" where these may not be read: the rest of a job is told without them."""
    try:
        tags = aws.client("sagemaker").list_tags(ResourceArn=described["TrainingJobArn"])["Tags"]
    except Exception as error:
        if explain.classify(error) is not Kind.DENIED:
            raise
        return "?"
    return next((tag["Value"] for tag in tags if tag["Key"] == "orchestrate-script"), "?")


def _price(machine: str | None, region: str, *, spot: bool) -> dict[str, str | bool | None] | None:
    """Today's price of *machine* in *region*, as plans keep it; None where it is not known."""
    try:
        return plan.price_json(*cost.prices_of(catalog.machine(machine or "", cloud="sagemaker"), region, spot=spot))
    except catalog.CatalogError:
        return None


def _options(resources: Mapping[str, Any]) -> dict[str, int | None]:
    """What of a spec's options decides what the job can cost: disks, and how long machines are kept warm."""
    kept_seconds = resources.get("KeepAlivePeriodInSeconds") or 0
    return {
        "volume_gb": resources.get("VolumeSizeInGB"),
        "keep_alive_minutes": math.ceil(kept_seconds / 60) or None,
    }


def _row(aws: Aws, described: Mapping[str, Any], launch_id: str, rehearsed: bool) -> Run:
    script = _script(aws, described)
    name = described["TrainingJobName"]
    run_id = f"r-{launch_id[:10]}"
    resources = described["ResourceConfig"]
    checkpoints = described.get("CheckpointConfig", {}).get("S3Uri", "")
    limits = described["StoppingCondition"]
    spot = bool(described.get("EnableManagedSpotTraining"))
    return Run(
        id=run_id,
        name=name.removeprefix(NAME_PREFIX).removesuffix(f"-{launch_id}"),
        backend="sagemaker",
        state=RunState.ACCEPTED,
        script=script,
        script_key=f"elsewhere:{script}",
        created_at=described["CreationTime"].astimezone(UTC).isoformat(timespec="milliseconds"),
        spec={
            "backend": "sagemaker",
            "instance": resources.get("InstanceType"),
            "elsewhere": True,
            "cloud": _options(resources),
        },
        plan={
            "count": resources.get("InstanceCount", 1),
            "machine": {"name": resources.get("InstanceType"), "cloud": "sagemaker", "what": ""},
            "price": _price(resources.get("InstanceType"), aws.region, spot=spot),
            "limits": {"grace_seconds": GRACE_SECONDS},
            "cloud": {
                "region": aws.region,
                "account": described["RoleArn"].split(":")[4],
                "role": described["RoleArn"],
                "bucket": checkpoints.removeprefix("s3://").partition("/")[0],
                "profile": aws.profile,
                "job_name": name,
                "max_seconds": limits.get("MaxRuntimeInSeconds"),
                "max_wait_seconds": limits.get("MaxWaitTimeInSeconds"),
                "kms_key": described.get("OutputDataConfig", {}).get("KmsKeyId") or None,
                "rehearsed": rehearsed,
            },
        },
        run_dir=str(state.run_dir(run_id)),
        remote_id=name,
        launch_key=described["Environment"].get("ORCHESTRATE_LAUNCH_KEY"),
        region=aws.region,
        endpoint=aws.endpoint,
        rehearsed=rehearsed,
    )
