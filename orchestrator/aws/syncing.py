"""Bring runs that were made elsewhere, and carry our tags, into this ledger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any

from orchestrator import state
from orchestrator.aws import following, jobs
from orchestrator.aws.client import Aws
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
        following.look(aws, run, ledger)
        brought.append(run.id)
    return brought


def _names(aws: Aws) -> Iterator[str]:
    pages = aws.client("sagemaker").get_paginator("list_training_jobs")
    config = {"MaxItems": MOST_JOBS, "PageSize": 100}
    asked = {"NameContains": NAME_PREFIX, "SortBy": "CreationTime", "SortOrder": "Descending"}
    for page in pages.paginate(**asked, PaginationConfig=config):
        yield from (job["TrainingJobName"] for job in page["TrainingJobSummaries"])


def _row(aws: Aws, described: Mapping[str, Any], launch_id: str, rehearsed: bool) -> Run:
    tags = aws.client("sagemaker").list_tags(ResourceArn=described["TrainingJobArn"])["Tags"]
    script = next((tag["Value"] for tag in tags if tag["Key"] == "orchestrate-script"), "?")
    name = described["TrainingJobName"]
    run_id = f"r-{launch_id[:10]}"
    resources = described["ResourceConfig"]
    checkpoints = described.get("CheckpointConfig", {}).get("S3Uri", "")
    limits = described["StoppingCondition"]
    return Run(
        id=run_id,
        name=name.removeprefix(NAME_PREFIX).removesuffix(f"-{launch_id}"),
        backend="sagemaker",
        state=RunState.ACCEPTED,
        script=script,
        script_key=f"elsewhere:{script}",
        created_at=described["CreationTime"].astimezone(UTC).isoformat(timespec="milliseconds"),
        spec={"backend": "sagemaker", "instance": resources.get("InstanceType"), "elsewhere": True},
        plan={
            "count": resources.get("InstanceCount", 1),
            "machine": {"name": resources.get("InstanceType"), "cloud": "sagemaker", "what": ""},
            "price": None,
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
