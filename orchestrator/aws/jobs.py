"""One training job, made once: create, and what a lost answer means; how a job stands, in our words."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, localcontext
from typing import Any
from urllib.parse import urlsplit

from orchestrator import crashpoints, money
from orchestrator.aws import explain
from orchestrator.aws.client import Aws
from orchestrator.aws.explain import Kind
from orchestrator.errors import Conflict, OrchestrateError, OutcomeUnknown
from orchestrator.runs import RunState

ATTEMPTS = 6
SETTLE_SECONDS = 20.0
CREATE_SECONDS = 60.0  # how long an answer to the create call is waited for
_ENDS = {"Completed": RunState.SUCCEEDED, "Failed": RunState.FAILED, "Stopped": RunState.STOPPED}
_WAITING = (
    "Starting", "Pending", "Downloading", "Interrupted", "Restarting", "Updating", "DownloadingTrainingImage",
    "PreparingTrainingStack", "LaunchingMLInstances",
)  # fmt: skip
_ASKED = (Kind.AMBIGUOUS, Kind.EXISTS, Kind.UNREACHABLE)
Tell = Callable[[str], None]


class UnreadableAnswer(Exception):
    """An answer that no AWS service gave: as with a bad gateway's, what was asked for may have been done."""

    response: Mapping[str, Any] = {"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 502}}


@dataclass(frozen=True)
class Standing:
    """How a job stands: state is ours, remote_status the cloud's own word. Times are UTC, ISO 8601."""

    state: RunState
    remote_status: str
    message: str
    reason: str | None
    started_at: str | None
    ended_at: str | None
    billable_seconds: int | None
    exit_code: int | None


@contextlib.contextmanager
def told(doing: str, context: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what the SDK raises while *doing* something into one clear line with a remedy; see explain.refusal."""
    try:
        yield
    except (OrchestrateError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:
        ours = isinstance(error, UnreadableAnswer)
        if not ours and not type(error).__module__.startswith(("botocore", "boto3", "s3transfer", "urllib3")):
            raise
        raise explain.refusal(error, doing=doing, context=context) from error


def pace_of(endpoint: str | None) -> float:
    """How long pauses are, against AWS itself = 1: a loopback service is neither far nor shared.

    endpoint: None is where this shell's own settings lead.
    """
    address = endpoint or os.environ.get("AWS_ENDPOINT_URL_SAGEMAKER") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return 0.05 if urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1") else 1.0


def describe(aws: Aws, name: str) -> dict[str, Any] | None:
    """The job as the service tells it; None where there is none of that name."""
    try:
        answer: dict[str, Any] = aws.client("sagemaker").describe_training_job(TrainingJobName=name)
    except Exception as error:
        if explain.classify(error) is Kind.MISSING:
            return None
        raise
    if (
        "TrainingJobStatus" not in answer
    ):  # a login page, a broken proxy: botocore makes an answer without members of it
        raise UnreadableAnswer("SageMaker's answer is not one")
    return answer


def is_ours(described: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Was this job made by this very launch?"""
    have, want = described.get("Environment", {}), request["Environment"]
    return all(have.get(name) == want[name] for name in ("ORCHESTRATE_LAUNCH_ID", "ORCHESTRATE_LAUNCH_KEY"))


def create_once(aws: Aws, request: Mapping[str, Any], *, run_id: str, tell: Tell, unclear: bool = False) -> bool:
    """Have the job of *request* made, whatever becomes of the answers; False where it was there already, and is ours.

    One attempt on the wire a time: what a lost answer means is decided here, by asking for the job. Raises Conflict where the
    name is another's, LoginNeeded and CloudRefused where the service said no and it is certain that there is no job, and
    OutcomeUnknown where nobody can tell. unclear: an earlier call, another process's perhaps, may have made it.
    """
    pace = pace_of(aws.endpoint)
    client = aws.client("sagemaker", attempts=1, read_timeout=CREATE_SECONDS * pace)
    name = request["TrainingJobName"]
    for attempt in range(ATTEMPTS):
        _pause(attempt, pace)
        crashpoints.reached("create about to be sent")
        try:
            if "TrainingJobArn" not in client.create_training_job(**request):
                raise UnreadableAnswer("SageMaker's answer is not one")
        except Exception as error:
            kind = explain.classify(error)
            if kind is Kind.THROTTLED:
                tell("SageMaker asks to wait (throttled); trying again")
                continue
            if kind not in _ASKED and not unclear:
                raise explain.refusal(error, doing="create the training job", context=_context(request, aws)) from error
            clear_no = kind not in _ASKED
            unclear = unclear or (not clear_no and kind is not Kind.UNREACHABLE)
            how = "now refuses" if clear_no else "gave no clear answer to"
            tell(f"SageMaker {how} the create call ({kind}): asking for {name}")
            there = _settled(aws, request, run_id) if clear_no else is_there(aws, request, run_id=run_id)
            if there:
                return False
            if there is False and clear_no:
                raise explain.refusal(error, doing="create the training job", context=_context(request, aws)) from error
        else:
            crashpoints.reached("create answered")
            return True
    what = f"SageMaker gave no clear answer in {ATTEMPTS} tries; whether {name} was made is not known"
    if not unclear:
        what = f"SageMaker could not be reached or kept asking to wait in {ATTEMPTS} tries; nothing is known to run"
    raise OutcomeUnknown(what, hint=f"orchestrate resume {run_id}   (it asks first, and never starts a second job)")


def _settled(aws: Aws, request: Mapping[str, Any], run_id: str) -> bool | None:
    """As is_there, asked until it is there or SETTLE_SECONDS have passed: a call whose answer was lost may still be at work."""
    pace = pace_of(aws.endpoint)
    deadline = time.monotonic() + SETTLE_SECONDS * pace
    while not (there := is_there(aws, request, run_id=run_id)) and time.monotonic() < deadline:
        time.sleep(2 * pace)
    return there


def _pause(attempt: int, pace: float) -> None:
    if attempt:
        time.sleep(pace * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311 - spreads, does not hide


def _context(request: Mapping[str, Any], aws: Aws) -> dict[str, str]:
    return {
        "instance": str(request["ResourceConfig"].get("InstanceType", "")),
        "role": str(request["RoleArn"]),
        "image": str(request["AlgorithmSpecification"].get("TrainingImage", "")),
        "job": str(request["TrainingJobName"]),
        "bucket": str(request["CheckpointConfig"]["S3Uri"]).removeprefix("s3://").partition("/")[0],
        "kms_key": str(request["OutputDataConfig"].get("KmsKeyId", "")),
        "region": aws.region,
        "profile": aws.profile or "",
    }


def is_there(aws: Aws, request: Mapping[str, Any], *, run_id: str) -> bool | None:
    """Is the job of *request* there? None: nobody answered, and the same name may be sent again, which is taken once.

    Raises Conflict where another has its name, LoginNeeded, and OutcomeUnknown where the question itself is refused.
    """
    name = request["TrainingJobName"]
    try:
        described = describe(aws, name)
    except Exception as error:
        kind = explain.classify(error)
        if kind in (Kind.THROTTLED, Kind.AMBIGUOUS, Kind.UNREACHABLE):
            return None
        what = f"{name} may have been made: the question was refused ({explain.said(error)})"
        hint = f"orchestrate resume {run_id}"
        if kind in (Kind.EXPIRED, Kind.NO_CREDENTIALS):
            login = explain.refusal(error, doing=f"ask for {name}", context=_context(request, aws))
            what, hint = f"{name} may have been made: {login.what}", f"{login.hint}, then orchestrate resume {run_id}"
        raise OutcomeUnknown(what, hint=hint) from error
    if described is None:
        return False
    if not is_ours(described, request):
        what = f"a training job {name} is there already, and it is not this run's"
        raise Conflict(what, hint="nothing was touched; submit again, under another --name")
    return True


def check_account(aws: Aws, wanted: str) -> None:
    """Raise Conflict where this login is of another account than *wanted*: there, nothing of the run can be seen."""
    have = aws.account()
    if have != wanted:
        what = f"this login is of account {have}, and the run is of account {wanted}"
        raise Conflict(what, hint="--profile or AWS_PROFILE of that account")


def standing(described: Mapping[str, Any], now: RunState) -> Standing:
    """How the described job stands; *now* is how the run stood, for a status that this version does not know."""
    status, secondary = described["TrainingJobStatus"], described.get("SecondaryStatus", "")
    state = _ENDS.get(status)
    if status == "Deleting":
        state = RunState.STOPPED
    elif status == "Stopping":
        state = RunState.STOPPING
    elif state is None:
        known = {"Training": RunState.RUNNING, "Uploading": RunState.RUNNING}
        state = RunState.ACCEPTED if secondary in _WAITING else known.get(secondary, now)
        if state not in (RunState.ACCEPTED, RunState.RUNNING, RunState.STOPPING):
            state = RunState.ACCEPTED
    transitions = described.get("SecondaryStatusTransitions") or [{}]
    reason = described.get("FailureReason")
    code = re.search(r"exit code: (-?\d+)", reason or "", re.IGNORECASE)
    return Standing(
        state=state,
        remote_status=secondary or status,
        message=str(transitions[-1].get("StatusMessage", "")),
        reason=reason,
        started_at=_iso(described.get("TrainingStartTime")),
        ended_at=_iso(described.get("TrainingEndTime")),
        billable_seconds=_billable(described),
        exit_code=0 if state is RunState.SUCCEEDED else int(code[1]) if code else None,
    )


def _billable(described: Mapping[str, Any]) -> int | None:
    """Seconds of the job, and those for which its machines were kept warm, as far as they are counted yet."""
    seconds: int | None = described.get("BillableTimeInSeconds")
    kept = described.get("WarmPoolStatus", {}).get("ResourceRetainedBillableTimeInSeconds", 0)
    return None if seconds is None else seconds + kept


def _iso(time_of: datetime | None) -> str | None:
    return None if time_of is None else time_of.astimezone(UTC).isoformat(timespec="milliseconds")


def bill(plan: Mapping[str, Any], billable_seconds: int | None) -> str | None:
    """USD for what was billed, at the price of the plan, as text; None where either is not known."""
    usd = money.usd_for(plan, billable_seconds)
    if usd is None:
        return None
    with localcontext(rounding=ROUND_CEILING):
        return f"{usd:.6f}"
