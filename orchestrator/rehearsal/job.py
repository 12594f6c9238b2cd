"""One training job of the rehearsal: its states, attempts, limits, clock and metrics, and what Describe tells of it."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Protocol

from orchestrator.rehearsal import contract
from orchestrator.rehearsal.faults import Faults, FaultSpec
from orchestrator.rehearsal.runner import LOG_GROUP, Ending, JobOrder, Runner

ENDED = ("Completed", "Failed", "Stopped")
TICK_SECONDS = 0.05
# Long enough to be seen by a client that polls, short enough that a rehearsal is quick; minutes in the cloud.
LAUNCH_SECONDS, INTERRUPTED_SECONDS = 0.2, 0.5
WORDS = {
    "launch": "Launching requested ML instances",
    "prepare": "Preparing the instances for training",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Interrupted": "Managed spot training instances were interrupted",
    "Restarting": "Restarting the training job after an internal error",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}
CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)
# Members of the request that Describe does not show.
NOT_DESCRIBED = ("Tags", "SessionChainingConfig")


class Account(contract.Stores, Protocol):
    """The account's other services, as a job needs them."""

    def log_events(
        self, region: str, group: str, prefix: str, read: Mapping[str, int]
    ) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        """Each stream of *group* whose name begins with *prefix*, and its (ms, text) events but the first *read*."""
        ...


class JobRunner(Protocol):
    def run(self) -> Ending: ...
    def stop(self) -> None: ...
    def reclaim(self) -> None: ...


@dataclass(frozen=True)
class Setting:
    """What all jobs of a rehearsal share."""

    account: str
    folder: Path
    stores: Account
    faults: Faults
    quotas: contract.Quotas
    endpoint: Callable[[], str]  # of the side of the server that meets no faults: jobs and their uploads live there
    grace_seconds: float = 120.0
    level: str | None = None
    runner: Callable[[JobOrder, Any], JobRunner] = Runner


def now() -> float:
    """Seconds since 1970, to the millisecond as the service tells them."""
    return round(time.time(), 3)


class MetricTail:
    """The last value of each metric that the request defines, read from the job's log events as they come."""

    def __init__(self, definitions: list[Mapping[str, str]]) -> None:
        self._patterns = {definition["Name"]: re.compile(definition["Regex"]) for definition in definitions}
        self.events_read: dict[str, int] = {}
        self.last: dict[str, tuple[float, int]] = {}
        self.lines = 0  # events in which a metric was found

    def read(self, streams: Iterator[tuple[str, list[tuple[int, str]]]]) -> None:
        for name, events in streams:
            for timestamp, text in events:
                self.lines += self._look(text, timestamp)
            self.events_read[name] = self.events_read.get(name, 0) + len(events)

    def _look(self, text: str, timestamp: int) -> bool:
        found = False
        for name, pattern in self._patterns.items():
            for match in pattern.finditer(text):
                try:
                    value = float(match.group(1) if pattern.groups else match.group())
                except (TypeError, ValueError):
                    continue
                found = True
                if value == value and abs(value) != float("inf"):  # JSON has no word for others
                    self.last[name] = (value, timestamp)
        return found


@dataclass
class Clock:
    """Seconds that count: between the first Downloading and the end, and the part of it that machines ran."""

    started: float | None = None
    ended: float | None = None
    ran: float = 0.0
    since: float | None = None  # monotonic; set while machines run

    def start(self) -> None:
        self.started = self.started or now()
        self.since = self.since or time.monotonic()

    def pause(self) -> None:
        if self.since is not None:
            self.ran += time.monotonic() - self.since
            self.since = None

    @property
    def running(self) -> float:
        return self.ran + (0.0 if self.since is None else time.monotonic() - self.since)


@dataclass
class Job:
    """One training job: the Listener of its runner, and the thread that sees it through all attempts."""

    setting: Setting
    region: str
    request: Mapping[str, Any]
    folder: Path
    arn: str
    status: str = "InProgress"
    secondary: str = "Starting"
    created: float = field(default_factory=now)
    modified: float = field(default_factory=now)
    transitions: list[dict[str, Any]] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    reason: str | None = None
    attempt: int = 0
    level: str | None = None
    why_stopped: str | None = None  # Stopped, MaxRuntimeExceeded, MaxWaitTimeExceeded

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.done = threading.Event()
        self._wake = threading.Event()
        self._runner: JobRunner | None = None
        self._training_since: float | None = None
        self.metrics = MetricTail(self.request["AlgorithmSpecification"].get("MetricDefinitions", []))
        self._move("Starting", WORDS["launch"])

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    @property
    def spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    # The runner's Listener.

    def state(self, secondary: str, message: str) -> None:
        with self.lock:
            if secondary == "Downloading":
                self.clock.start()
            self._training_since = time.monotonic() if secondary == "Training" else None
            if self.why_stopped and secondary not in ("Uploading",):
                return
            self._move(secondary, message)

    def _move(self, secondary: str, message: str, status: str | None = None) -> None:
        """Enter *secondary*; the same one again only changes its message, as the service does."""
        with self.lock:
            moment = now()
            last = self.transitions[-1] if self.transitions else None
            if last is not None and last["Status"] == secondary:
                last["StatusMessage"] = message
            else:
                if last is not None:
                    last["EndTime"] = moment
                self.transitions.append({"Status": secondary, "StartTime": moment, "StatusMessage": message})
            self.secondary, self.modified = secondary, moment
            if status is not None:
                self.status = status
                if status in ENDED:
                    self.transitions[-1]["EndTime"] = moment

    # Its life.

    def start(self) -> None:
        threading.Thread(target=self._live, name=f"training job {self.name}", daemon=True).start()

    def stop(self, why: str = "Stopped") -> None:
        """Ask it to end: SIGTERM, the grace time, SIGKILL; what it saved is uploaded."""
        with self.lock:
            if self.ended or self.why_stopped:
                return
            self.why_stopped = why
            self._move("Stopping", WORDS["Stopping"], "Stopping")
            runner = self._runner
        self._wake.set()
        if runner is not None:
            runner.stop()

    def _live(self) -> None:
        try:
            self._conclude(self._attempts())
        except Exception as error:  # a bug of the rehearsal must not leave a job that never ends
            traceback.print_exc()
            self._end("Failed", "Failed", f"InternalServerError: {type(error).__name__}: {error}")
        finally:
            self.done.set()

    def _attempts(self) -> Ending | None:
        """All attempts; None if no machine ever ran for the last one."""
        retries = self.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
        if self.setting.faults.on_job("capacity", self.name):
            self._pause(LAUNCH_SECONDS)
            self.reason = CAPACITY
            return None
        while True:
            self._move_unless_stopped("Starting", WORDS["launch"])
            self._pause(LAUNCH_SECONDS / 2)
            self._move_unless_stopped("Starting", WORDS["prepare"])
            self._pause(LAUNCH_SECONDS / 2)
            if self.why_stopped:
                return None
            ending = self._attempt()
            if ending.kind == "reclaimed":
                self._move_unless_stopped("Interrupted", WORDS["Interrupted"])
                self._pause(INTERRUPTED_SECONDS)
            elif (ending.failure_reason or "").startswith("InternalServerError") and self.attempt <= retries:
                self._move_unless_stopped("Restarting", WORDS["Restarting"])
            else:
                return ending

    def _move_unless_stopped(self, secondary: str, message: str) -> None:
        with self.lock:
            if not self.why_stopped:
                self._move(secondary, message)

    def _pause(self, seconds: float) -> None:
        """Wait, not past a stop or the job's MaxWaitTimeInSeconds."""
        until = time.monotonic() + seconds
        while not self._wake.is_set() and (left := until - time.monotonic()) > 0:
            self._wake.wait(min(left, TICK_SECONDS))
            self._hold_limits()

    def _attempt(self) -> Ending:
        with self.lock:
            self.attempt += 1
            self._training_since = None
            order = JobOrder(
                name=self.name,
                arn=self.arn,
                region=self.region,
                request=self.request,
                folder=self.folder,
                endpoint=self.setting.endpoint(),
                attempt=self.attempt,
                grace_seconds=self.setting.grace_seconds,
                level=self.setting.level,
            )
            runner = self._runner = self.setting.runner(order, self)
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(runner, over), name=f"limits of {self.name}", daemon=True)
        watch.start()
        if self.why_stopped:  # asked for between the look before this attempt and the runner's making
            runner.stop()
        try:
            ending = runner.run()
        finally:
            over.set()
            watch.join()
            with self.lock:
                self._runner = None
                self.clock.pause()
        self.level = ending.level
        return ending

    def _watch(self, runner: JobRunner, over: threading.Event) -> None:
        """Hold the limits, and take a spot job's machines away where a fault says so."""
        faults, decided = self.setting.faults, False
        while not over.wait(TICK_SECONDS):
            self._hold_limits()
            reclaim = faults.waiting("reclaim") if self.spot and not decided else None
            if reclaim is None or not self._due(reclaim):
                continue
            decided = True
            if not self.why_stopped and faults.on_job("reclaim", self.name):
                runner.reclaim()

    def _due(self, reclaim: FaultSpec) -> bool:
        since = self._training_since
        if since is None or reclaim.metrics is None:
            return since is not None and time.monotonic() - since >= reclaim.after
        self.read_metrics()
        return self.metrics.lines >= reclaim.metrics

    def _hold_limits(self) -> None:
        condition = self.request["StoppingCondition"]
        if self.clock.running >= condition.get("MaxRuntimeInSeconds", contract.DEFAULT_RUNTIME_SECONDS):
            self.stop("MaxRuntimeExceeded")
        elif time.time() - self.created >= condition.get("MaxWaitTimeInSeconds", float("inf")):
            self.stop("MaxWaitTimeExceeded")

    def _conclude(self, ending: Ending | None) -> None:
        if ending is not None and ending.kind == "completed":
            self._end("Completed", "Completed")
        elif ending is not None and ending.kind == "failed":
            self._end("Failed", "Failed", ending.failure_reason or "AlgorithmError: the training job failed")
        elif ending is None and self.reason is not None and not self.why_stopped:
            self._end("Failed", "Failed", self.reason)
        else:
            self._end("Stopped", self.why_stopped or "Stopped")

    def _end(self, status: str, secondary: str, reason: str | None = None) -> None:
        self.read_metrics()
        with self.lock:
            self.clock.pause()
            self.reason = None if reason is None else reason[:1024]
            if self.clock.started is not None:
                self.clock.ended = now()
            self._move(secondary, WORDS[secondary] if reason is None else reason[:1024], status)

    def read_metrics(self) -> None:
        stores, tail = self.setting.stores, self.metrics
        with self.lock:
            tail.read(stores.log_events(self.region, LOG_GROUP, f"{self.name}/", tail.events_read))

    # What is told of it.

    def describe(self) -> dict[str, Any]:
        """DescribeTrainingJob's answer; times in seconds since 1970, as they travel."""
        if not self.ended:
            self.read_metrics()
        with self.lock:
            shown = {key: value for key, value in self.request.items() if key not in NOT_DESCRIBED}
            output = {"KmsKeyId": "", "CompressionType": "GZIP", **self.request["OutputDataConfig"]}
            shown["OutputDataConfig"] = output
            shown["StoppingCondition"] = {
                "MaxRuntimeInSeconds": contract.DEFAULT_RUNTIME_SECONDS,
                **self.request["StoppingCondition"],
            }
            for flag in ("NetworkIsolation", "InterContainerTrafficEncryption", "ManagedSpotTraining"):
                shown.setdefault(f"Enable{flag}", False)
            shown |= {
                "TrainingJobArn": self.arn,
                "ModelArtifacts": {"S3ModelArtifacts": self._model_uri(output)},
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary,
                "SecondaryStatusTransitions": [dict(transition) for transition in self.transitions],
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
                "FinalMetricDataList": [
                    {"MetricName": name, "Value": value, "Timestamp": timestamp / 1000}
                    for name, (value, timestamp) in self.metrics.last.items()
                ],
                "ProfilingStatus": "Disabled",
            }
            shown |= self._times()
            if self.reason is not None and self.status == "Failed":
                shown["FailureReason"] = self.reason
            if warm := self.warm_pool():
                shown["WarmPoolStatus"] = warm
            return shown

    def _model_uri(self, output: Mapping[str, str]) -> str:
        name = "model/" if output["CompressionType"] == "NONE" else "model.tar.gz"
        return f"{output['S3OutputPath'].rstrip('/')}/{self.name}/output/{name}"

    def _times(self) -> dict[str, Any]:
        clock, times = self.clock, {}
        if clock.started is not None:
            times["TrainingStartTime"] = clock.started
        if clock.started is not None and clock.ended is not None:
            times["TrainingEndTime"] = clock.ended
            times["TrainingTimeInSeconds"] = max(1, ceil(clock.ended - clock.started))
            times["BillableTimeInSeconds"] = min(max(1, ceil(clock.ran)), times["TrainingTimeInSeconds"])
        return times

    def warm_pool(self) -> dict[str, Any] | None:
        """How its machines stand that were to be kept after it; nobody takes one over here."""
        keep = self.request["ResourceConfig"].get("KeepAlivePeriodInSeconds", 0)
        if not keep:
            return None
        if not self.ended:
            return {"Status": "InUse"}
        kept = time.time() - self.modified
        return {
            "Status": "Available" if kept < keep else "Terminated",
            "ResourceRetainedBillableTimeInSeconds": int(min(kept, keep)),
        }

    def summary(self) -> dict[str, Any]:
        """Its line in ListTrainingJobs."""
        with self.lock:
            times = {} if self.clock.ended is None else {"TrainingEndTime": self.clock.ended}
            warm = self.warm_pool()
            return {
                "TrainingJobName": self.name,
                "TrainingJobArn": self.arn,
                "CreationTime": self.created,
                **times,
                "LastModifiedTime": self.modified,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary,
                **({} if warm is None else {"WarmPoolStatus": warm}),
            }
