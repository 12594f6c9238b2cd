"""Why a job ended, from its reason and the script's last lines. The reasons are those of public reports."""

from __future__ import annotations

import pytest

from orchestrator.aws import explain

# reason, exit codes, last lines, kind, what must be said, what must be suggested; and where the reason was read.
FAILURES = [
    (
        "DIAGNijmegen/rse-grand-challenge#2631",
        "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type.",
        (),
        (),
        "capacity",
        "AWS had no ml.p3.2xlarge to give; nothing is billed",
        "--instance ml.p3.2xlarge,ml.",
    ),
    (
        "aws/sagemaker-python-sdk#57",
        "ClientError: Cannot pull algorithm container. Either the image does not exist or its permissions are incorrect.",
        (),
        (),
        "image",
        "the image could not be pulled",
        "--image",
    ),
    (
        "aws/sagemaker-python-sdk#43",
        "ClientError: SageMaker was unable to assume the role 'arn:aws:iam::<ACCOUNT>:role/AmazonSageMaker-ExecutionRole'",
        (),
        (),
        "role",
        "SageMaker could not assume the role",
        "--role ARN",
    ),
    (
        "astronomer/docs#1695",
        "ClientError: TrainingHostAgent Initialization failed:InvalidInputException: SageMaker is unable to perform: "
        "sts:AssumeRole on the role. Check if you have a trust relationship for 'sagemaker.amazonaws.com' to assume the role.",
        (),
        (),
        "role",
        "SageMaker could not assume the role",
        "--role ARN",
    ),
    (
        "aws/amazon-sagemaker-examples#4384",
        "ClientError: Data download failed:Unable to download object s3://b/model (AccessDenied: Access Denied)",
        (),
        (),
        "data",
        "the role may not read the data",
        "s3:GetObject",
    ),
    (
        "aws/amazon-sagemaker-examples#3881",
        "ClientError: Artifact upload failed:Unable to upload file to s3://b/x.tfevents (BucketRegionError: bucket must be "
        "in the same region as the job)",
        (),
        (),
        "region",
        "a bucket is in another region than the job",
        "--region",
    ),
    (
        "aws/amazon-sagemaker-operator-for-k8s#22",
        "ClientError: Artifact upload failed:Please ensure that the subnet's route table has a route to an S3 VPC endpoint "
        "or a NAT device, and both the security groups and the subnet's network ACL allow outbound traffic to S3",
        (),
        (),
        "network",
        "from the subnet there is no way to S3",
        "--subnet",
    ),
    (
        "aws/sagemaker-python-sdk#70",
        "InternalServerError: We encountered an internal error. Please try again.",
        (),
        ("Final loss: 0.1",),
        "internal",
        "SageMaker itself failed",
        "--resume-from r-1",
    ),
    (
        "the model's kms names",
        "ClientError: Artifact upload failed: not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:x",
        (),
        (),
        "kms",
        "a key of KMS was refused",
        "--kms-key",
    ),
    ("secondary status", "MaxRuntimeExceeded", (), (), "limit", "stopped at its limit of time", "--resume-from r-1"),
    ("secondary status", "MaxWaitTimeExceeded", (), (), "limit", "time to wait for spot", "--max-wait"),
    ("secondary status", "Interrupted", (), (), "spot", "the spot machine was taken away", "--resume-from r-1"),
    (
        "PyTorch's words",
        "AlgorithmError: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB, exit code: 1",
        (1,),
        (),
        "gpu-memory",
        "the GPU's memory was too small",
        "a smaller batch",
    ),
    (
        "PyTorch's words",
        "AlgorithmError: , exit code: 1",
        (1,),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device",),
        "image",
        "the image's PyTorch has no code for this GPU",
        "leave --image and --torch out",
    ),
    (
        "exit code alone",
        "AlgorithmError: , exit code: 137",
        (),
        (),
        "memory",
        "the machine's memory ran out",
        "--instance",
    ),
    ("a signal as Python counts it", "AlgorithmError", (-9,), (), "memory", "killed (137)", "--instance"),
    (
        "aws/sagemaker-python-sdk#134",
        "AlgorithmError: Exit Code: 139",
        (),
        (),
        "crash",
        "native code (139)",
        "FAULTHANDLER",
    ),
    (
        "aws/amazon-sagemaker-examples#842",
        "AlgorithmError: exit code: '132'",
        (),
        (),
        "crash",
        "processor",
        "--instance",
    ),
    (
        "the C library's words",
        "AlgorithmError: OSError: [Errno 28] No space left on device: '/opt/ml/checkpoints/x.pt', exit code: 1",
        (1,),
        (),
        "disk",
        "the machine's disk is full",
        "--volume",
    ),
    (
        "Python's words",
        "AlgorithmError: , exit code: 1",
        (1,),
        (
            "Traceback (most recent call last):",
            "FileNotFoundError: [Errno 2] No such file or directory: 'checkpoints/last.pt'",
        ),
        "checkpoint",
        "the script found no checkpoint",
        "--resume-from",
    ),
    (
        "Python's words",
        "AlgorithmError: , exit code: 1",
        (1,),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/opt/ml/input/data/train/data.pt'",),
        "script",
        "the script ended with exit code 1: FileNotFoundError: [Errno 2] No such file or directory: '/opt/ml/input",
        "orchestrate logs r-1",
    ),
    (
        "Python's words",
        "AlgorithmError: , exit code: 1",
        (1,),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'lightning/epoch=3.ckpt'",),
        "checkpoint",
        "the script found no checkpoint",
        "--resume-from",
    ),
    (
        "a run and a bucket with these letters",
        "ClientError: Data download failed:Unable to download s3://kms-data/orc-KMS-1/a (AccessDenied: Access Denied)",
        (),
        (),
        "data",
        "the role may not read the data",
        "s3:GetObject",
    ),
    (
        "Python's words",
        "AlgorithmError: ModuleNotFoundError: No module named 'tiktoken', exit code: 1",
        (1,),
        (),
        "requirement",
        "the package tiktoken is not in the image",
        "requirements.txt",
    ),
    (
        "Python's words",
        "AlgorithmError: , exit code: 3",
        (0, 3),
        ("Traceback (most recent call last):", '  File "x.py"', "[algo-1] ValueError: lr must be above 0", "bye"),
        "script",
        "the script ended with exit code 3: ValueError: lr must be above 0",
        "orchestrate logs r-1",
    ),
    (
        "bootstrap.py's words",
        "AlgorithmError: cannot install requirements.txt\nERROR: No matching distribution found for torchh, exit code: 2",
        (2,),
        (),
        "requirement",
        "a package of requirements.txt could not be installed",
        "pip install -r requirements.txt",
    ),
    (
        "bootstrap.py's words",
        "AlgorithmError: the package is not the one submitted: its digest is ab, not cd, exit code: 2",
        (2,),
        (),
        "package",
        "was not what was submitted",
        "--again",
    ),
    ("nothing at all", "", (), (), "other", "no reason was given", "orchestrate logs r-1"),
    ("something new", "StrangeError: never seen", (), (), "other", "StrangeError: never seen", "orchestrate logs r-1"),
]


@pytest.mark.parametrize(
    ("source", "reason", "codes", "lines", "kind", "what", "hint"),
    FAILURES,
    ids=[f"{row[4]}: {row[0]}" for row in FAILURES],
)
def test_a_failed_job_is_explained(
    source: str,
    reason: str,
    codes: tuple[int, ...],
    lines: tuple[str, ...],
    kind: str,
    what: str,
    hint: str,
) -> None:
    context = {"run": "r-1", "instance": "ml.p3.2xlarge"}
    explained = explain.failure(reason, exit_codes=codes, lines=lines, context=context)
    assert explained.kind == kind
    assert what in explained.what
    assert hint in explained.hint
    assert "\n" not in explained.what
    # Without a context it still reads.
    assert "{" not in explain.failure(reason, exit_codes=codes, lines=lines).hint


def test_the_scripts_own_last_error_is_part_of_the_explanation() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "x.py", line 3',
        "ValueError: lr must be above 0",
        "cleaning up",
    ]
    explained = explain.failure("AlgorithmError: , exit code: 1", exit_codes=(1,), lines=lines)
    assert explained.what == "the script ended with exit code 1: ValueError: lr must be above 0"


def test_what_the_script_printed_does_not_outweigh_what_the_service_says() -> None:
    lines = ["retrying after CapacityError", "CUDA out of memory, halving the batch"]
    assert explain.failure("InternalServerError: We encountered an internal error.", lines=lines).kind == "internal"
    assert explain.failure("ClientError: something new", lines=lines).kind == "other"


def test_control_codes_of_a_script_stay_out_of_the_explanation() -> None:
    explained = explain.failure("AlgorithmError: \x1b]52;c;x\x07ValueError: \u202ebad, exit code: 1", exit_codes=(1,))
    assert explained.what.isprintable()


def test_an_error_that_the_script_mended_is_no_reason() -> None:
    lines = ["RuntimeError: CUDA out of memory, halving the batch", "Traceback …", "ValueError: lr must be above 0"]
    assert explain.failure("AlgorithmError: , exit code: 1", exit_codes=(1,), lines=lines).kind == "script"


def test_what_a_script_downloads_itself_is_not_the_channels_data() -> None:
    reason = "AlgorithmError: requests.HTTPError: 403 Forbidden while download of weights, exit code: 1"
    explained = explain.failure(reason, exit_codes=(1,))
    assert (explained.kind, "HTTPError: 403 Forbidden" in explained.what) == ("script", True)


def test_ranks_and_hosts_before_an_error_are_left_out() -> None:
    lines = ["[algo-2] [rank3]: torch.distributed.DistBackendError: NCCL error in: x.cpp"]
    explained = explain.failure("AlgorithmError: , exit code: 1", exit_codes=(1,), lines=lines, context={"run": "r-9"})
    assert explained.kind == "distributed"
    assert explained.what.endswith("lost each other: torch.distributed.DistBackendError: NCCL error in: x.cpp")
    assert "orchestrate logs r-9" in explained.hint


def test_a_line_of_many_brackets_is_read_in_no_time() -> None:
    lines = ["[=] " * 2000 + "!", "  [x] " * 200]
    assert explain.failure("AlgorithmError: , exit code: 1", exit_codes=(1,), lines=lines).kind == "script"
