"""SageMaker's operations on training jobs: what they take, answer and refuse."""

from __future__ import annotations

import base64
import binascii
import datetime
import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.rehearsal import contract
from orchestrator.rehearsal.contract import Refused, invalid
from orchestrator.rehearsal.control import partition
from orchestrator.rehearsal.job import Job, Setting

PAGE = 10  # what ListTrainingJobs answers where nothing is asked for


class TrainingJobs:
    """The training jobs of one account, in all regions."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._lock = threading.RLock()
        self._jobs: dict[tuple[str, str], Job] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._operations: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": lambda params, region: self._get(params, region).describe(),
            "StopTrainingJob": self._stop,
            "ListTrainingJobs": self._list,
            "DeleteTrainingJob": self._delete,
            "AddTags": lambda params, _: self._add_tags(params),
            "ListTags": lambda params, _: self._list_tags(params),
            "DeleteTags": lambda params, _: self._delete_tags(params),
        }

    def answers(self, operation: str, params: Mapping[str, Any]) -> bool:
        """Whether *operation* is ours; tags of other things are moto's."""
        arn = params.get("ResourceArn", "")
        return operation in self._operations and (not arn or ":training-job/" in str(arn))

    def call(self, operation: str, params: Mapping[str, Any], region: str) -> dict[str, Any]:
        """The answer of *operation*. Raises Refused."""
        contract.check_model(operation, params)
        return self._operations[operation](params, region)

    def jobs(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def _create(self, params: Mapping[str, Any], region: str) -> dict[str, Any]:
        setting = self._setting
        arn = f"arn:{partition(region)}:sagemaker:{region}:{setting.account}:training-job/{params['TrainingJobName']}"
        key = (region, params["TrainingJobName"])
        contract.check_create(params, region=region, account=setting.account, stores=setting.stores)
        with self._lock:
            if key in self._jobs:
                raise contract.name_taken(self._jobs[key].arn)
            spot = bool(params.get("EnableManagedSpotTraining"))
            for instance_type, wanted in contract.machines(params).items():
                in_use = self._in_use(instance_type, region, spot)
                setting.quotas.check(instance_type, wanted, in_use, spot=spot)
            folder = setting.folder / region / params["TrainingJobName"]
            shutil.rmtree(folder, ignore_errors=True)  # of a job that was deleted, and its name given again
            folder.mkdir(parents=True)
            job = self._jobs[key] = Job(setting, region, params, folder, arn)
            self._tags[arn] = {tag["Key"]: tag["Value"] for tag in params.get("Tags", [])}
        job.start()
        return {"TrainingJobArn": arn}

    def _in_use(self, instance_type: str, region: str, spot: bool) -> int:
        running = (job for job in self._jobs.values() if not job.ended and job.region == region and job.spot == spot)
        return sum(contract.machines(job.request).get(instance_type, 0) for job in running)

    def _get(self, params: Mapping[str, Any], region: str) -> Job:
        with self._lock:
            job = self._jobs.get((region, params["TrainingJobName"]))
        if job is None:
            raise contract.not_found()
        return job

    def _stop(self, params: Mapping[str, Any], region: str) -> dict[str, Any]:
        job = self._get(params, region)
        if job.ended:
            raise contract.has_ended(job.status)
        job.stop()
        return {}

    def _delete(self, params: Mapping[str, Any], region: str) -> dict[str, Any]:
        job = self._get(params, region)
        warm = job.warm_pool() or {}
        if not job.ended or warm.get("Status") == "Available":
            raise Refused(
                "ResourceInUse", f"The training job {job.name} is in status {job.status} or keeps a warm pool."
            )
        with self._lock:
            self._jobs.pop((region, job.name), None)
            self._tags.pop(job.arn, None)
        return {}

    def _list(self, params: Mapping[str, Any], region: str) -> dict[str, Any]:
        with self._lock:
            lines = [job.summary() for (where, _), job in self._jobs.items() if where == region]
        lines = [line for line in lines if _wanted(line, params)]
        by = {"Name": "TrainingJobName", "Status": "TrainingJobStatus"}.get(params.get("SortBy", ""), "CreationTime")
        lines.sort(
            key=lambda line: (line[by], line["TrainingJobName"]), reverse=params.get("SortOrder") == "Descending"
        )
        first = _offset(params.get("NextToken"))
        most = params.get("MaxResults", PAGE)
        answer: dict[str, Any] = {"TrainingJobSummaries": lines[first : first + most]}
        if first + most < len(lines):
            answer["NextToken"] = base64.b64encode(f"after {first + most}".encode()).decode()
        return answer

    def _tags_of(self, params: Mapping[str, Any]) -> dict[str, str]:
        if params["ResourceArn"] not in self._tags:
            raise contract.not_found()
        return self._tags[params["ResourceArn"]]

    def _add_tags(self, params: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            tags = self._tags_of(params)
            merged = tags | {tag["Key"]: tag["Value"] for tag in params["Tags"]}
            if len(merged) > 50:
                raise invalid("A resource can have at most 50 tags.")
            tags.update(merged)
            return _told(tags)

    def _list_tags(self, params: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            return _told(self._tags_of(params))

    def _delete_tags(self, params: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            tags = self._tags_of(params)
            for key in params["TagKeys"]:
                tags.pop(key, None)
        return {}


def _told(tags: Mapping[str, str]) -> dict[str, Any]:
    return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.b64decode(token, validate=True).decode().removeprefix("after "))
    except (binascii.Error, ValueError) as error:
        raise invalid("Invalid pagination token.") from error


def _wanted(line: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether *line* passes the filters of ListTrainingJobs."""
    if params.get("NameContains", "") not in line["TrainingJobName"]:
        return False
    if params.get("StatusEquals", line["TrainingJobStatus"]) != line["TrainingJobStatus"]:
        return False
    warm = line.get("WarmPoolStatus", {}).get("Status")
    if params.get("WarmPoolStatusEquals", warm) != warm:
        return False
    for name in ("CreationTime", "LastModifiedTime"):
        if not _seconds(params.get(f"{name}After"), 0.0) <= line[name]:
            return False
        if not line[name] <= _seconds(params.get(f"{name}Before"), float("inf")):
            return False
    return "TrainingPlanArnEquals" not in params


def _seconds(moment: Any, default: float) -> float:
    """A time as it travels: seconds since 1970, or ISO 8601."""
    if moment is None:
        return default
    if isinstance(moment, str):
        return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
    return float(moment)
