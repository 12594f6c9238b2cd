"""The operations on training jobs, as a real client meets them, with jobs that really run."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rehearsal import control
from orchestrator.rehearsal.server import Rehearsal
from tests.rehearsal.conftest import (
    BUCKET,
    ScriptedRunner,
    client,
    refusal,
    rehearsal,
    spot,
    training_request,
    wait_for,
    wait_for_end,
    wait_for_secondary,
)

pytestmark = pytest.mark.slow


def secondaries(told: dict[str, Any]) -> list[str]:
    return [transition["Status"] for transition in told["SecondaryStatusTransitions"]]


def assert_agrees_with_the_model(operation: str, answer: dict[str, Any]) -> None:
    """The answer has no member that the service's model has not, all that it requires, and texts within its limits."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("sagemaker").operation_model(operation).output_shape
    body = {key: value for key, value in answer.items() if key != "ResponseMetadata"}
    report = ParamValidator().validate(body, shape)
    assert not report.has_errors(), report.generate_report()
    _assert_texts(body, shape)


def _assert_texts(value: Any, shape: Any) -> None:
    if shape.type_name == "structure":
        for name, member in value.items():
            _assert_texts(member, shape.members[name])
    elif shape.type_name == "list":
        for member in value:
            _assert_texts(member, shape.member)
    elif shape.type_name == "string":
        assert len(value) <= shape.metadata.get("max", len(value))
        assert not shape.enum or value in shape.enum


def test_a_job_walks_from_starting_to_completed(sagemaker: Any, s3: Any) -> None:
    made = sagemaker.create_training_job(**training_request(script="echo loss=0.5; echo 1 > /opt/ml/model/weights"))
    assert made["TrainingJobArn"] == "arn:aws:sagemaker:us-east-1:123456789012:training-job/job-1"
    begun = sagemaker.describe_training_job(TrainingJobName="job-1")
    first = begun["SecondaryStatusTransitions"][0]
    assert first["Status"] == "Starting"
    assert first["StatusMessage"] in ("Launching requested ML instances", "Preparing the instances for training")
    assert ("TrainingStartTime" in begun) == (begun["SecondaryStatus"] != "Starting")
    told = wait_for_end(sagemaker, "job-1")
    assert told["TrainingJobStatus"] == told["SecondaryStatus"] == "Completed", told.get("FailureReason")
    assert secondaries(told) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    transitions = told["SecondaryStatusTransitions"]
    for before, after in itertools.pairwise(transitions):
        assert before["StartTime"] <= before["EndTime"] == after["StartTime"]
    assert told["CreationTime"] <= told["TrainingStartTime"] <= told["TrainingEndTime"] <= told["LastModifiedTime"]
    assert told["BillableTimeInSeconds"] >= 1
    assert told["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/runs/job-1/output/model.tar.gz"
    archive = s3.get_object(Bucket=BUCKET, Key="runs/job-1/output/model.tar.gz")["Body"].read()
    with tarfile.open(fileobj=BytesIO(archive)) as model:
        assert "weights" in [Path(name).name for name in model.getnames()]


def test_every_answer_agrees_with_the_service_model(sagemaker: Any) -> None:
    made = sagemaker.create_training_job(**training_request(Tags=[{"Key": "a", "Value": "b"}]))
    begun = sagemaker.describe_training_job(TrainingJobName="job-1")
    ended = wait_for_end(sagemaker, "job-1")
    assert_agrees_with_the_model("CreateTrainingJob", made)
    assert_agrees_with_the_model("DescribeTrainingJob", begun)
    assert_agrees_with_the_model("DescribeTrainingJob", ended)
    assert_agrees_with_the_model("ListTrainingJobs", sagemaker.list_training_jobs())
    assert_agrees_with_the_model("ListTags", sagemaker.list_tags(ResourceArn=made["TrainingJobArn"]))


def test_describe_shows_everything_that_was_asked_for(tmp_path: Path) -> None:
    asked = training_request(
        **spot(),
        HyperParameters={"lr": "0.1"},
        Environment={"NAME": "value"},
        RetryStrategy={"MaximumRetryAttempts": 2},
        VpcConfig={"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        TensorBoardOutputConfig={"S3OutputPath": f"s3://{BUCKET}/board", "LocalPath": "/opt/ml/output/tensorboard"},
        EnableNetworkIsolation=True,
        EnableInterContainerTrafficEncryption=True,
        Tags=[{"Key": "team", "Value": "a"}],
    )
    with rehearsal(tmp_path, runner=ScriptedRunner("completed")) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**asked)
        told = wait_for_end(sagemaker, "job-1")
    assert told["OutputDataConfig"]["S3OutputPath"] == asked["OutputDataConfig"]["S3OutputPath"]
    same = set(asked) - {"Tags", "OutputDataConfig"}
    assert {name: told[name] for name in same} == {name: asked[name] for name in same}
    assert "Tags" not in told


def test_the_last_value_of_each_metric_is_told(sagemaker: Any) -> None:
    request = training_request(script="echo '[metrics] loss=0.9 acc=0.1'; echo '[metrics] loss=0.25'; echo loss=nan")
    pattern = r"loss=([-+0-9.eEnaif]+)"
    request["AlgorithmSpecification"]["MetricDefinitions"] = [
        {"Name": "loss", "Regex": pattern},
        {"Name": "acc", "Regex": r"acc=([0-9.]+)"},
        {"Name": "never", "Regex": r"never=([0-9.]+)"},
    ]
    sagemaker.create_training_job(**request)
    told = wait_for_end(sagemaker, "job-1")
    assert {m["MetricName"]: m["Value"] for m in told["FinalMetricDataList"]} == {"loss": 0.25, "acc": 0.1}
    assert all(told["CreationTime"] - datetime.timedelta(1) < m["Timestamp"] for m in told["FinalMetricDataList"])


def test_a_script_that_fails_gives_its_last_words_as_the_reason(sagemaker: Any) -> None:
    script = "echo out of luck > /opt/ml/output/failure; exit 3"
    sagemaker.create_training_job(**training_request(script=script))
    told = wait_for_end(sagemaker, "job-1")
    assert told["TrainingJobStatus"] == told["SecondaryStatus"] == "Failed"
    assert told["FailureReason"].startswith("AlgorithmError: out of luck")
    assert "exit code: 3" in told["FailureReason"]


def test_a_stop_lets_the_script_save_and_ends_as_stopped(sagemaker: Any, s3: Any) -> None:
    script = "trap 'echo saved > /opt/ml/model/last; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    sagemaker.create_training_job(**training_request(script=script))
    wait_for_secondary(sagemaker, "job-1", "Training")
    time.sleep(0.5)  # the trap is set when `up` was written; its line is not awaited here
    sagemaker.stop_training_job(TrainingJobName="job-1")
    assert sagemaker.describe_training_job(TrainingJobName="job-1")["TrainingJobStatus"] in ("Stopping", "Stopped")
    told = wait_for_end(sagemaker, "job-1")
    assert told["TrainingJobStatus"] == told["SecondaryStatus"] == "Stopped"
    assert secondaries(told)[-3:] == ["Stopping", "Uploading", "Stopped"]
    assert s3.head_object(Bucket=BUCKET, Key="runs/job-1/output/model.tar.gz")["ContentLength"] > 0


def test_a_job_that_is_stopped_before_its_machines_came_was_never_billed(tmp_path: Path) -> None:
    runner = ScriptedRunner()
    with rehearsal(tmp_path, runner=runner) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request())
        sagemaker.stop_training_job(TrainingJobName="job-1")
        told = wait_for_end(sagemaker, "job-1")
    assert told["TrainingJobStatus"] == "Stopped"
    assert "BillableTimeInSeconds" not in told
    assert runner.orders == []


def test_max_runtime_stops_a_job(sagemaker: Any) -> None:
    limits = {"MaxRuntimeInSeconds": 1}
    script = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    sagemaker.create_training_job(**training_request(script=script, StoppingCondition=limits))
    told = wait_for_end(sagemaker, "job-1")
    assert told["TrainingJobStatus"] == "Stopped"
    assert told["SecondaryStatus"] == "MaxRuntimeExceeded"


def test_max_runtime_counts_all_attempts_of_a_spot_job(tmp_path: Path) -> None:
    limits = {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 600}
    faults = ["reclaim:after=0.4:count=9"]
    with rehearsal(tmp_path, runner=ScriptedRunner(*["until told"] * 9), faults=faults) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request(**spot(StoppingCondition=limits)))
        told = wait_for_end(sagemaker, "job-1")
    assert told["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert "Interrupted" in secondaries(told)
    assert 1 <= told["BillableTimeInSeconds"] <= told["TrainingTimeInSeconds"]


def test_max_wait_ends_a_spot_job_that_waits_for_machines(tmp_path: Path) -> None:
    limits = {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}
    faults = ["reclaim:after=0.05:count=99"]
    with rehearsal(tmp_path, runner=ScriptedRunner(*["until told"] * 99), faults=faults) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request(**spot(StoppingCondition=limits)))
        told = wait_for_end(sagemaker, "job-1")
    assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")


def test_an_internal_error_is_tried_again_as_often_as_the_request_allows(tmp_path: Path) -> None:
    runner = ScriptedRunner("failed", "failed", "completed", reason="InternalServerError: try again")
    with rehearsal(tmp_path, runner=runner) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request(RetryStrategy={"MaximumRetryAttempts": 1}))
        told = wait_for_end(sagemaker, "job-1")
    assert told["FailureReason"] == "InternalServerError: try again"
    assert len(runner.orders) == 2
    assert "Restarting" in secondaries(told)


def test_a_runner_that_breaks_still_ends_the_job(tmp_path: Path) -> None:
    def broken(_order: object, _listener: object) -> None:
        raise RuntimeError("a bug")

    with rehearsal(tmp_path, runner=broken) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request())
        told = wait_for_end(sagemaker, "job-1")
    assert told["FailureReason"] == "InternalServerError: RuntimeError: a bug"


def test_jobs_are_listed_by_name_status_and_time_page_by_page(tmp_path: Path) -> None:
    with rehearsal(tmp_path, runner=ScriptedRunner(*["completed"] * 4, "until told")) as cloud:
        sagemaker = client(cloud, "sagemaker")
        for name in ("b-1", "a-2", "b-3", "a-4"):
            sagemaker.create_training_job(**training_request(name))
            wait_for_end(sagemaker, name)
        sagemaker.create_training_job(**training_request("z-5"))
        wait_for_secondary(sagemaker, "z-5", "Training")

        def names(**options: Any) -> list[str]:
            told = sagemaker.list_training_jobs(**options)
            return [line["TrainingJobName"] for line in told["TrainingJobSummaries"]]

        assert names() == ["b-1", "a-2", "b-3", "a-4", "z-5"]
        assert names(SortBy="Name") == ["a-2", "a-4", "b-1", "b-3", "z-5"]
        assert names(SortOrder="Descending", MaxResults=2) == ["z-5", "a-4"]
        assert names(NameContains="b-") == ["b-1", "b-3"]
        assert names(StatusEquals="InProgress") == ["z-5"]
        first = sagemaker.describe_training_job(TrainingJobName="a-2")["CreationTime"]
        assert names(CreationTimeAfter=first + datetime.timedelta(milliseconds=1)) == ["b-3", "a-4", "z-5"]
        assert names(CreationTimeBefore=first - datetime.timedelta(milliseconds=1)) == ["b-1"]
        pages = sagemaker.get_paginator("list_training_jobs").paginate(PaginationConfig={"PageSize": 2})
        sizes = [len(page["TrainingJobSummaries"]) for page in pages]
        assert sizes == [2, 2, 1]
        assert client(cloud, "sagemaker", "eu-west-1").list_training_jobs()["TrainingJobSummaries"] == []
        code, _ = refusal(sagemaker.list_training_jobs, NextToken="what")
        assert code == "ValidationException"


def test_tags_are_added_listed_and_removed(sagemaker: Any) -> None:
    request = training_request(Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    arn = sagemaker.create_training_job(**request)["TrainingJobArn"]
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "3"}, {"Key": "c", "Value": "4"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a", "unknown"])
    told = sagemaker.list_tags(ResourceArn=arn)["Tags"]
    assert told == [{"Key": "b", "Value": "3"}, {"Key": "c", "Value": "4"}]
    nobody = arn.replace("job-1", "job-2")
    assert refusal(sagemaker.list_tags, ResourceArn=nobody)[1] == "Requested resource not found."
    wait_for_end(sagemaker, "job-1")


def test_a_job_is_deleted_only_after_its_end_and_its_name_is_free_again(tmp_path: Path) -> None:
    with rehearsal(tmp_path, runner=ScriptedRunner("until told", "completed")) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request())
        wait_for_secondary(sagemaker, "job-1", "Training")
        assert refusal(sagemaker.delete_training_job, TrainingJobName="job-1")[0] == "ResourceInUse"
        sagemaker.stop_training_job(TrainingJobName="job-1")
        wait_for_end(sagemaker, "job-1")
        sagemaker.delete_training_job(TrainingJobName="job-1")
        assert refusal(sagemaker.describe_training_job, TrainingJobName="job-1")[0] == "ValidationException"
        sagemaker.create_training_job(**training_request())
        assert wait_for_end(sagemaker, "job-1")["TrainingJobStatus"] == "Completed"


def test_kept_machines_show_as_a_warm_pool(tmp_path: Path) -> None:
    machines = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1, "KeepAlivePeriodInSeconds": 1}
    with rehearsal(tmp_path, runner=ScriptedRunner("completed")) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request(ResourceConfig=machines))
        told = wait_for_end(sagemaker, "job-1")
        assert told["WarmPoolStatus"]["Status"] == "Available"
        wait_for(sagemaker, "job-1", lambda told: told["WarmPoolStatus"]["Status"] == "Terminated")


def test_names_are_unique_by_region_and_account(tmp_path: Path) -> None:
    with rehearsal(tmp_path, runner=ScriptedRunner(*["completed"] * 3)) as cloud:
        sagemaker = client(cloud, "sagemaker")
        sagemaker.create_training_job(**training_request())
        code, message = refusal(sagemaker.create_training_job, **training_request())
        assert code == "ResourceInUse"
        assert "arn:aws:sagemaker:us-east-1:123456789012:training-job/job-1" in message
        there = "eu-west-1"
        request = training_request(OutputDataConfig={"S3OutputPath": f"s3://{control.bucket_of(there)}/runs"})
        request["AlgorithmSpecification"]["TrainingImage"] = f"763104351884.dkr.ecr.{there}.amazonaws.com/x:1"
        client(cloud, "sagemaker", there).create_training_job(**request)
        role = "arn:aws:iam::999999999999:role/team/mine"
        url = control.provision(cloud.url, role=role, bucket="my-own-bucket", region="us-east-1")
        request = training_request(RoleArn=role, OutputDataConfig={"S3OutputPath": "s3://my-own-bucket/runs"})
        made = client(url, "sagemaker").create_training_job(**request)
        assert made["TrainingJobArn"].split(":")[4] == "999999999999"
        assert len(cloud.state()["jobs"]) == 3


def test_the_rehearsal_plays_the_account_of_the_users_own_role(cloud: Rehearsal) -> None:
    role = "arn:aws:iam::999999999999:role/mine"
    url = control.provision(cloud.url, role=role, bucket="my-own-bucket", region="us-east-1")
    s3 = client(url, "s3")
    assert client(url, "sts").get_caller_identity()["Account"] == "999999999999"
    s3.put_object(Bucket="my-own-bucket", Key="a b/ü", Body=b"x", ExpectedBucketOwner="999999999999")
    assert refusal(s3.head_bucket, Bucket="my-own-bucket", ExpectedBucketOwner="123456789012")[0] == "403"
    assert control.provision(cloud.url, role=control.ROLE, bucket=BUCKET, region="us-east-1") == cloud.url
    script = "echo hello > /opt/ml/model/weights"
    output = {"S3OutputPath": "s3://my-own-bucket/runs"}
    sagemaker = client(url, "sagemaker")
    sagemaker.create_training_job(**training_request(script=script, RoleArn=role, OutputDataConfig=output))
    told = wait_for_end(sagemaker, "job-1")
    assert told["TrainingJobStatus"] == "Completed", told["FailureReason"]
    s3.head_object(Bucket="my-own-bucket", Key="runs/job-1/output/model.tar.gz")
    logs = client(url, "logs").describe_log_streams(logGroupName="/aws/sagemaker/TrainingJobs")
    assert len(logs["logStreams"]) == 1


def test_a_bucket_of_another_owner_is_refused_where_the_owner_is_named(cloud: Rehearsal, s3: Any) -> None:
    own = {"ExpectedBucketOwner": control.ACCOUNT}
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"1", **own)
    cloud.declare_foreign_bucket("squatted")
    s3.put_object(Bucket="squatted", Key="a", Body=b"1")  # it lets everybody in
    for call, more in (
        (s3.head_bucket, {}),
        (s3.list_objects_v2, {}),
        (s3.get_object, {"Key": "a"}),
        (s3.put_object, {"Key": "a", "Body": b"2"}),
        (s3.create_multipart_upload, {"Key": "a"}),
    ):
        code, _ = refusal(call, Bucket="squatted", **more, **own)
        assert code in ("AccessDenied", "403")
    source = {"Bucket": "squatted", "Key": "a"}
    code, _ = refusal(
        s3.copy_object, Bucket=BUCKET, Key="b", CopySource=source, ExpectedSourceBucketOwner=control.ACCOUNT
    )
    assert code == "AccessDenied"
    s3.copy_object(Bucket=BUCKET, Key="b", CopySource=source, **own)
    assert refusal(s3.head_bucket, Bucket="nobodys", **own)[0] == "404"


def test_every_region_has_its_bucket_and_its_role(cloud: Rehearsal) -> None:
    for region in ("us-east-1", "eu-west-1", "cn-north-1", "eusc-de-east-1"):
        found = client(cloud, "s3", region).get_bucket_location(Bucket=control.bucket_of(region))["LocationConstraint"]
        assert found == (None if region == "us-east-1" else region)
        role = client(cloud, "iam", region).get_role(RoleName=control.ROLE_NAME)["Role"]
        assert role["Arn"] == control.role_arn(region)


def test_a_web_page_gets_no_answer(cloud: Rehearsal) -> None:
    for path in ("/", "/rehearsal/state"):
        request = urllib.request.Request(cloud.url + path, headers={"Origin": "https://example.com"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        caught.value.close()
        assert caught.value.code == 403


def test_another_user_of_this_machine_gets_no_answer(cloud: Rehearsal) -> None:
    if os.geteuid() != 0 or not Path("/proc/net/tcp").exists():
        pytest.skip("only root can be somebody else, and only Linux tells who calls")
    port = cloud.url.rpartition(":")[2]
    ask = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /rehearsal/state HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    own = subprocess.run(["/bin/bash", "-c", ask], cwd="/", capture_output=True, timeout=30)
    others = subprocess.run(
        ["/bin/bash", "-c", ask], cwd="/", capture_output=True, timeout=30, user=65_534, group=65_534
    )
    assert b"jobs" in own.stdout
    assert b"HTTP" not in others.stdout


def test_a_client_with_an_ipv6_socket_is_answered(cloud: Rehearsal) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6) as connection:
        try:
            connection.connect(("::ffff:127.0.0.1", int(cloud.url.rpartition(":")[2])))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        connection.sendall(b"GET /rehearsal/state HTTP/1.0\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_state_tells_jobs_and_calls_and_a_jobs_own_calls_are_not_counted(cloud: Rehearsal, sagemaker: Any) -> None:
    sagemaker.create_training_job(**training_request(script="echo 1 > /opt/ml/model/weights"))
    wait_for_end(sagemaker, "job-1")
    with urllib.request.urlopen(f"{cloud.url}/rehearsal/state", timeout=10) as answer:
        state = json.load(answer)
    assert [(job["name"], job["status"]) for job in state["jobs"]] == [("job-1", "Completed")]
    assert state["calls"]["CreateTrainingJob"] == 1
    assert set(state["calls"]) == {"CreateTrainingJob", "DescribeTrainingJob"}
    assert state["level"] in ("namespaces", "folder")


def test_the_connection_is_kept_and_large_bodies_arrive(cloud: Rehearsal, s3: Any) -> None:
    import http.client

    host = cloud.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    for _ in range(3):
        connection.request("GET", "/rehearsal/state")
        assert connection.getresponse().read()
        assert connection.sock is not None
    connection.close()
    data = bytes(range(256)) * 40_000
    s3.put_object(Bucket=BUCKET, Key="large", Body=data)
    assert s3.get_object(Bucket=BUCKET, Key="large")["Body"].read() == data
    head = s3.head_object(Bucket=BUCKET, Key="large")
    assert head["ContentLength"] == len(data)


def test_a_rehearsal_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    from orchestrator.errors import BadInput

    for host in ("0.0.0.0", "192.168.1.1", "localhost", "::1"):
        with pytest.raises(BadInput):
            Rehearsal(tmp_path, host=host)


def test_a_port_that_is_taken_is_told_in_one_line(cloud: Rehearsal, tmp_path: Path) -> None:
    from orchestrator.errors import StateError

    port = int(cloud.url.rpartition(":")[2])
    with pytest.raises(StateError, match="cannot listen on 127"):
        Rehearsal(tmp_path / "other", port=port)._listen(("127.0.0.1", port), object, lambda *_: None)
