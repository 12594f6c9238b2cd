"""Each fault that can be asked for, as a real client meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput, Problems
from orchestrator.rehearsal import control
from orchestrator.rehearsal.faults import CALL_KINDS, Faults, parse, parse_all
from orchestrator.rehearsal.server import Rehearsal
from tests.rehearsal.conftest import (
    BUCKET,
    ScriptedRunner,
    client,
    refusal,
    rehearsal,
    spot,
    training_request,
    wait_for_end,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path, runner=ScriptedRunner(*["completed"] * 20)) as cloud:
        yield cloud


def fired(cloud: Rehearsal) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cloud.folder / "faults.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("explode", "there is no fault 'explode'"),
        ("", "there is no fault ''"),
        ("throttle:CreateTrainingJob:often", "unknown key 'often'"),
        ("throttle:count=two", "count is no number"),
        ("throttle:count=1.5", "count is no number"),
        ("throttle:rate=1.5", "rate is out of range"),
        ("throttle:rate=nan", "rate is out of range"),
        ("throttle:count=-1", "count is out of range"),
        ("capacity:create", "the API has no such refusal"),
        ("quota:PutObject", "only CreateTrainingJob has a quota"),
        ("throttle:not an operation", "names no operation"),
        ("throttle:Put\x1b[2J", "names no operation"),
    ],
)
def test_a_text_that_is_no_fault_is_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert words in caught.value.what
    assert "\x1b" not in caught.value.what
    assert "\n" not in caught.value.what


def test_all_wrong_faults_are_told_at_once() -> None:
    with pytest.raises(Problems) as caught:
        parse_all(["explode", "throttle", "slow:x=1"])
    assert len(caught.value.errors) == 2


def test_a_fault_fires_as_often_as_it_was_asked_for_after_as_many_calls(tmp_path: Path) -> None:
    faults = Faults(tmp_path / "log", ["throttle:A:count=2:after=1"])
    assert [faults.on_call("A") is not None for _ in range(5)] == [False, True, True, False, False]
    assert faults.on_call("B") is None
    assert faults.texts() == []


def test_the_same_seed_throws_the_same_dice_and_the_log_fires_again(tmp_path: Path) -> None:
    def pattern(*texts: str) -> list[bool]:
        faults = Faults(tmp_path / "log", texts)
        return [faults.on_call("A") is not None for _ in range(40)]

    first = pattern("500-before:A:rate=0.3:seed=7")
    assert first == pattern("500-before:A:rate=0.3:seed=7")
    assert first != pattern("500-before:A:rate=0.3:seed=8")
    assert 3 <= sum(first) <= 25
    (tmp_path / "log").unlink()
    unseeded = pattern("500-before:A:rate=0.3")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert pattern(f"500-before:A:rate=0.3:seed={lines[0]['seed']}") == unseeded
    assert pattern(*(line["again"] for line in lines[: sum(unseeded)])) == unseeded


@pytest.mark.parametrize(
    ("kind", "json_code", "s3_code", "sts_code"),
    [
        ("throttle", "ThrottlingException", "SlowDown", "Throttling"),
        ("500-before", "InternalFailure", "InternalError", "InternalFailure"),
        ("expired", "ExpiredTokenException", "ExpiredToken", "ExpiredToken"),
        ("denied", "AccessDeniedException", "AccessDenied", "AccessDenied"),
    ],
)
def test_each_service_refuses_in_its_own_words(
    faulty: Rehearsal, kind: str, json_code: str, s3_code: str, sts_code: str
) -> None:
    faulty.faults.arm([f"{kind}:*:rate=1"])
    sagemaker, s3 = client(faulty, "sagemaker"), client(faulty, "s3")
    assert refusal(sagemaker.create_training_job, **training_request())[0] == json_code
    assert refusal(client(faulty, "logs").describe_log_groups)[0] == json_code
    assert refusal(s3.put_object, Bucket=BUCKET, Key="a", Body=b"1")[0] == s3_code
    assert refusal(client(faulty, "sts").get_caller_identity)[0] == sts_code
    assert refusal(s3.head_bucket, Bucket=BUCKET)[0].isdecimal()
    faulty.faults.clear()
    assert sagemaker.list_training_jobs()["TrainingJobSummaries"] == []
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


@pytest.mark.parametrize(
    "kind", ["500-before", "500-after", "reset-before", "reset-after", "hang-before", "hang-after"]
)
def test_a_lost_answer_leaves_the_job_made_and_a_lost_call_does_not(faulty: Rehearsal, kind: str) -> None:
    from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

    lost = {"500": ClientError, "reset": ConnectionClosedError, "hang": ReadTimeoutError}[kind.split("-")[0]]
    sagemaker = client(faulty, "sagemaker", timeout=1)
    faulty.faults.arm([f"{kind}:CreateTrainingJob" + (":seconds=3" if kind.startswith("hang") else "")])
    with pytest.raises(lost):
        sagemaker.create_training_job(**training_request())
    made = [
        line["TrainingJobName"] for line in client(faulty, "sagemaker").list_training_jobs()["TrainingJobSummaries"]
    ]
    assert made == (["job-1"] if kind.endswith("after") else [])


def test_an_object_that_is_cut_short_is_noticed_by_the_client(faulty: Rehearsal) -> None:
    from botocore.exceptions import ResponseStreamingError

    s3 = client(faulty, "s3")
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"x" * 100_000)
    faulty.faults.arm(["truncated:GetObject"])
    body = s3.get_object(Bucket=BUCKET, Key="a")["Body"]
    with pytest.raises(ResponseStreamingError):
        body.read()
    body.close()
    assert len(s3.get_object(Bucket=BUCKET, Key="a")["Body"].read()) == 100_000


def test_a_slow_answer_still_comes(faulty: Rehearsal) -> None:
    from botocore.exceptions import ReadTimeoutError

    faulty.faults.arm(["slow:ListTrainingJobs:seconds=2:count=2"])
    assert client(faulty, "sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
    with pytest.raises(ReadTimeoutError):
        client(faulty, "sagemaker", timeout=0.2).list_training_jobs()


def test_every_operation_of_s3_that_a_submit_uses_can_be_met(faulty: Rehearsal) -> None:
    s3 = client(faulty, "s3")
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"1")
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="b")["UploadId"]
    part = s3.upload_part(Bucket=BUCKET, Key="b", UploadId=upload, PartNumber=1, Body=b"1")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    s3.complete_multipart_upload(Bucket=BUCKET, Key="b", UploadId=upload, MultipartUpload=parts)
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="c")["UploadId"]
    s3.list_multipart_uploads(Bucket=BUCKET)
    s3.list_parts(Bucket=BUCKET, Key="c", UploadId=upload)
    s3.abort_multipart_upload(Bucket=BUCKET, Key="c", UploadId=upload)
    s3.head_bucket(Bucket=BUCKET)
    s3.head_object(Bucket=BUCKET, Key="a")
    s3.get_object(Bucket=BUCKET, Key="a")["Body"].close()
    s3.list_objects_v2(Bucket=BUCKET)
    s3.copy_object(Bucket=BUCKET, Key="d", CopySource={"Bucket": BUCKET, "Key": "a"})
    s3.delete_object(Bucket=BUCKET, Key="d")
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "a"}]})
    s3.get_bucket_location(Bucket=BUCKET)
    s3.list_buckets()
    counted = dict(faulty.front.calls)
    assert counted.pop("CreateMultipartUpload") == 2
    others = (
        "PutObject UploadPart CompleteMultipartUpload ListMultipartUploads ListParts AbortMultipartUpload HeadBucket"
        " HeadObject GetObject ListObjectsV2 CopyObject DeleteObject DeleteObjects GetBucketLocation ListBuckets"
    )
    assert counted == dict.fromkeys(others.split(), 1)


def test_a_client_that_tries_again_gets_through(faulty: Rehearsal) -> None:
    faulty.faults.arm(["throttle:DescribeTrainingJob:count=1", "reset-before:DescribeTrainingJob"])
    sagemaker = client(faulty, "sagemaker", attempts=4)
    sagemaker.create_training_job(**training_request())
    answer = sagemaker.describe_training_job(TrainingJobName="job-1")
    assert answer["ResponseMetadata"]["RetryAttempts"] == 2
    assert [line["fault"].partition(":")[0] for line in fired(faulty)] == ["throttle", "reset-before"]


def test_a_quota_is_met_once(faulty: Rehearsal) -> None:
    faulty.faults.arm(["quota"])
    sagemaker = client(faulty, "sagemaker")
    code, message = refusal(sagemaker.create_training_job, **training_request())
    assert code == "ResourceLimitExceeded"
    assert "'ml.m5.large for training job usage' is 0 Instances" in message
    sagemaker.create_training_job(**training_request())


def test_without_capacity_the_job_is_taken_and_fails(faulty: Rehearsal) -> None:
    faulty.faults.arm(["capacity"])
    sagemaker = client(faulty, "sagemaker")
    sagemaker.create_training_job(**training_request())
    told = wait_for_end(sagemaker, "job-1")
    assert told["FailureReason"].startswith("CapacityError: Unable to provision requested ML compute capacity.")
    assert "BillableTimeInSeconds" not in told
    sagemaker.create_training_job(**training_request("job-2"))
    assert wait_for_end(sagemaker, "job-2")["TrainingJobStatus"] == "Completed"


COUNTING = (
    "trap 'exit 1' TERM; cd /opt/ml/checkpoints; for step in 1 2 3 4 5 6; do if [ ! -e step-$step ]; then"
    ' echo "[metrics] step=$step"; touch step-$step; sleep 0.5; fi; done; ls > /opt/ml/model/steps'
)


@pytest.mark.parametrize("fault", ["reclaim:after=1.2", "reclaim:metrics=2"])
def test_a_reclaimed_spot_job_goes_on_from_its_checkpoint(tmp_path: Path, fault: str) -> None:
    with rehearsal(tmp_path, faults=[fault]) as cloud:
        sagemaker, s3, logs = client(cloud, "sagemaker"), client(cloud, "s3"), client(cloud, "logs")
        request = training_request(script=COUNTING, **spot())
        request["AlgorithmSpecification"]["MetricDefinitions"] = [{"Name": "step", "Regex": "step=([0-9]+)"}]
        sagemaker.create_training_job(**request)
        told = wait_for_end(sagemaker, "job-1")
        assert told["TrainingJobStatus"] == "Completed", told.get("FailureReason")
        walked = [transition["Status"] for transition in told["SecondaryStatusTransitions"]]
        once = ["Starting", "Downloading", "Training"]
        assert walked == [*once, "Interrupted", *once, "Uploading", "Completed"]
        assert told["BillableTimeInSeconds"] <= told["TrainingTimeInSeconds"]
        streams = logs.describe_log_streams(logGroupName="/aws/sagemaker/TrainingJobs")["logStreams"]
        events = [
            logs.get_log_events(
                logGroupName="/aws/sagemaker/TrainingJobs", logStreamName=stream["logStreamName"], startFromHead=True
            )["events"]
            for stream in streams
        ]
        assert len(events) == 2
        assert all(len(of_attempt) < 6 for of_attempt in events)  # the second did not begin anew
        keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix="checkpoints/")["Contents"]]
        assert keys == [f"checkpoints/step-{step}" for step in range(1, 7)]
        assert fired(cloud)[0]["at"] == "job-1"


def test_an_on_demand_job_is_never_reclaimed(tmp_path: Path) -> None:
    with rehearsal(tmp_path, faults=["reclaim:after=0"]) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request(script="sleep 0.5"))
        assert wait_for_end(sagemaker, "job-1")["TrainingJobStatus"] == "Completed"
        assert cloud.state()["faults"] == ["reclaim:after=0"]


def test_faults_are_set_and_cleared_over_http(faulty: Rehearsal) -> None:
    told = control.call(faulty.url, "POST", "faults", ["throttle:ListTrainingJobs:count=5"])
    assert told == {"faults": ["throttle:ListTrainingJobs:count=5"]}
    sagemaker = client(faulty, "sagemaker")
    assert refusal(sagemaker.list_training_jobs)[0] == "ThrottlingException"
    assert control.call(faulty.url, "DELETE", "faults") == {"faults": []}
    sagemaker.list_training_jobs()
    with pytest.raises(BadInput, match="there is no fault 'explode'"):
        control.call(faulty.url, "POST", "faults", ["explode"])
    for wrong in ({"a": "b"}, [1], "throttle"):
        with pytest.raises(BadInput):
            control.call(faulty.url, "POST", "faults", wrong)
    with pytest.raises(BadInput, match="no such call"):
        control.call(faulty.url, "POST", "nothing")


def test_the_page_names_every_kind_of_fault() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "rehearsal.md").read_text("utf-8")
    assert all(f"`{kind}`" in page for kind in [*CALL_KINDS, "capacity", "reclaim"])
