"""Creating a job once: what each kind of answer leads to, against a service that answers by script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from orchestrator.aws import jobs
from orchestrator.aws.client import Aws
from orchestrator.errors import CloudRefused, Conflict, LoginNeeded, OutcomeUnknown
from orchestrator.runs import RunState

pytestmark = pytest.mark.slow

NAME = "orc-train-0123456789abcdef0123"
REQUEST: dict[str, Any] = {
    "TrainingJobName": NAME,
    "RoleArn": "arn:aws:iam::123456789012:role/x",
    "AlgorithmSpecification": {"TrainingImage": "i", "TrainingInputMode": "File"},
    "OutputDataConfig": {"S3OutputPath": "s3://b/o"},
    "CheckpointConfig": {"S3Uri": "s3://b/c"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    "Environment": {"ORCHESTRATE_LAUNCH_ID": "0123", "ORCHESTRATE_LAUNCH_KEY": "k"},
}
MADE = {"TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{NAME}"}
THERE = {"TrainingJobName": NAME, "TrainingJobStatus": "InProgress", "Environment": REQUEST["Environment"]}
ANOTHERS = {**THERE, "Environment": {}}
Step = tuple[int, Any]


def refused(code: str, message: str = "no", status: int = 400) -> Step:
    return status, {"__type": code, "message": message}


MISSING = refused("ValidationException", "Requested resource not found.")


class Service:
    """Answers each call with the next line of its script, and keeps what it was asked."""

    def __init__(self, script: dict[str, list[Step]]) -> None:
        self.script, self.asked = script, list[str]()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                operation = self.headers["X-Amz-Target"].partition(".")[2]
                service.asked.append(operation)
                lines = service.script[operation]
                status, body = lines.pop(0) if len(lines) > 1 else lines[0]
                if status == 0:  # hang up without a word
                    self.close_connection = True
                    return
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


Create = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def create() -> Iterator[Create]:
    """Run create_once against a script; gives its answer (or its exception) and the calls that were made."""
    services = []

    def run(create: list[Step], describe: list[Step] | None = None) -> tuple[Any, list[str]]:
        service = Service({"CreateTrainingJob": create, "DescribeTrainingJob": describe or [MISSING]})
        services.append(service)
        with Aws("us-east-1", endpoint=service.url) as aws:
            try:
                answer: Any = jobs.create_once(aws, REQUEST, run_id="r-1", tell=lambda _: None)
            except Exception as error:
                answer = error
        return answer, service.asked

    yield run
    for service in services:
        service.close()


def test_a_clear_yes_is_one_call(create: Create) -> None:
    assert create([(200, MADE)]) == (True, ["CreateTrainingJob"])


@pytest.mark.parametrize(
    "lost",
    [
        (0, ""),
        (500, "<html>"),
        refused("InternalFailure", status=500),
        (503, ""),
        (200, "<html>log in</html>"),
        (200, {}),
    ],
)
def test_a_lost_answer_is_a_question_and_a_job_that_is_ours_is_adopted(lost: Step, create: Create) -> None:
    assert create([lost], [(200, THERE)]) == (False, ["CreateTrainingJob", "DescribeTrainingJob"])


def test_a_lost_answer_without_a_job_sends_the_same_name_again(create: Create) -> None:
    answer, asked = create([(0, ""), (200, MADE)])
    assert answer is True
    assert asked == ["CreateTrainingJob", "DescribeTrainingJob", "CreateTrainingJob"]


def test_a_name_in_use_is_adopted_if_it_is_ours_and_left_alone_if_not(create: Create) -> None:
    taken = refused("ResourceInUse")
    assert create([taken], [(200, THERE)])[0] is False
    answer, asked = create([taken], [(200, ANOTHERS)])
    assert isinstance(answer, Conflict)
    assert asked == ["CreateTrainingJob", "DescribeTrainingJob"]


def test_throttling_is_waited_out_without_a_question(create: Create) -> None:
    answer, asked = create([refused("ThrottlingException")] * 2 + [(200, MADE)])
    assert answer is True
    assert asked == ["CreateTrainingJob"] * 3


def test_answers_that_stay_lost_end_as_unknown_and_name_the_way_on(create: Create) -> None:
    answer, asked = create([(0, "")])
    assert isinstance(answer, OutcomeUnknown)
    assert "orchestrate resume r-1" in str(answer.hint)
    assert asked.count("CreateTrainingJob") == jobs.ATTEMPTS


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ResourceLimitExceeded", CloudRefused),
        ("AccessDeniedException", CloudRefused),
        ("ValidationException", CloudRefused),
        ("ExpiredTokenException", LoginNeeded),
    ],
)
def test_a_clear_no_is_one_call_and_an_explanation(code: str, kind: type[Exception], create: Create) -> None:
    answer, asked = create([refused(code)])
    assert isinstance(answer, kind)
    assert asked == ["CreateTrainingJob"]


@pytest.mark.parametrize(
    ("status", "secondary", "state"),
    [
        ("InProgress", "Starting", RunState.ACCEPTED),
        ("InProgress", "Downloading", RunState.ACCEPTED),
        ("InProgress", "Training", RunState.RUNNING),
        ("InProgress", "Uploading", RunState.RUNNING),
        ("InProgress", "Interrupted", RunState.ACCEPTED),
        ("InProgress", "SomethingNew", RunState.RUNNING),
        ("Reheating", "Reheating", RunState.RUNNING),
        ("Stopping", "Stopping", RunState.STOPPING),
        ("Stopped", "MaxRuntimeExceeded", RunState.STOPPED),
        ("Stopped", "Stopped", RunState.STOPPED),
        ("Completed", "Completed", RunState.SUCCEEDED),
        ("Failed", "Failed", RunState.FAILED),
        ("Deleting", "Deleting", RunState.STOPPED),
    ],
)
def test_every_status_has_its_state_and_an_unknown_one_is_no_end(status: str, secondary: str, state: RunState) -> None:
    told = jobs.standing({"TrainingJobStatus": status, "SecondaryStatus": secondary}, RunState.RUNNING)
    assert told.state == state
    assert told.remote_status == secondary


def test_the_bill_is_billable_seconds_by_count_by_the_price_of_the_day_rounded_up() -> None:
    plan = {"price": {"usd_per_hour": "3.825"}, "count": 2}
    assert jobs.bill(plan, 31) == "0.065875"
    assert jobs.bill({"price": {"usd_per_hour": "0.1"}, "count": 1}, 1) == "0.000028"
    assert jobs.bill({"price": None, "count": 1}, 31) is None
    assert jobs.bill(plan, None) is None


QUOTA = refused("ResourceLimitExceeded")


def test_a_no_after_a_lost_answer_is_believed_only_when_the_service_says_that_there_is_no_job(create: Create) -> None:
    adopted, _ = create([(0, ""), QUOTA], [(500, ""), (500, ""), (500, ""), (200, THERE)])
    assert adopted is False
    refusal, asked = create([(0, ""), QUOTA], [MISSING])
    assert isinstance(refusal, CloudRefused)
    assert asked[-1] == "DescribeTrainingJob"
    unknown, _ = create([(0, ""), QUOTA], [(500, "")])
    assert isinstance(unknown, OutcomeUnknown)


def test_a_login_that_ends_after_a_lost_answer_leaves_the_run_to_resume(create: Create) -> None:
    unknown, _ = create([(0, "")], [refused("ExpiredTokenException")])
    assert isinstance(unknown, OutcomeUnknown)
    assert "orchestrate resume r-1" in str(unknown.hint)
