"""What AWS answers, told in words. The texts are those of public reports, each with where it was read."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("botocore", reason="comes with the sagemaker extra")

from botocore import exceptions as b
from botocore.exceptions import ClientError

from orchestrator.aws import explain
from orchestrator.aws.explain import Kind
from orchestrator.errors import CloudRefused, Conflict, LoginNeeded, OrchestrateError

URL = {"endpoint_url": "https://api.sagemaker.us-east-1.amazonaws.com/"}


def answer(code: str, message: str = "", status: int = 400, operation: str = "CreateTrainingJob") -> ClientError:
    told: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(told, operation)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer("ThrottlingException", "Rate exceeded"), Kind.THROTTLED),
        (answer("SlowDown", "Please reduce your request rate.", 503, "PutObject"), Kind.THROTTLED),
        (answer("429", "", 429), Kind.THROTTLED),
        (answer("ValidationException", "Rate exceeded"), Kind.THROTTLED),
        (answer("InternalFailure", "", 500), Kind.AMBIGUOUS),
        (answer("500", "Internal Server Error", 500), Kind.AMBIGUOUS),
        (answer("Whatever", "", 502), Kind.AMBIGUOUS),
        (answer("ServiceUnavailable", "", 503, "PutObject"), Kind.AMBIGUOUS),
        (b.ReadTimeoutError(**URL), Kind.AMBIGUOUS),
        (b.ConnectionClosedError(**URL), Kind.AMBIGUOUS),
        (b.HTTPClientError(error=OSError("reset")), Kind.AMBIGUOUS),
        (b.ResponseStreamingError(error="IncompleteRead"), Kind.AMBIGUOUS),
        (b.IncompleteReadError(actual_bytes=1, expected_bytes=2), Kind.AMBIGUOUS),
        (b.EndpointConnectionError(**URL), Kind.UNREACHABLE),
        (b.ConnectTimeoutError(**URL), Kind.UNREACHABLE),
        (b.ProxyConnectionError(proxy_url="http://proxy"), Kind.UNREACHABLE),
        (b.SSLError(**URL, error="[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), Kind.UNREACHABLE),
        (b.SSLError(**URL, error="[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]"), Kind.AMBIGUOUS),
        (answer("ExpiredTokenException", "The security token included in the request is expired"), Kind.EXPIRED),
        (answer("ExpiredToken", "The provided token has expired.", 400, "PutObject"), Kind.EXPIRED),
        (answer("RequestExpired", "Request has expired."), Kind.EXPIRED),
        (answer("TokenRefreshRequired", "", 400, "PutObject"), Kind.EXPIRED),
        (
            answer("InvalidSignatureException", "Signature expired: 20261122T1 is now earlier than 20261122T2"),
            Kind.EXPIRED,
        ),
        (
            answer("RequestTimeTooSkewed", "The difference between the request time and …", 403, "PutObject"),
            Kind.EXPIRED,
        ),
        (b.UnauthorizedSSOTokenError(), Kind.EXPIRED),
        (b.SSOTokenLoadError(profile_name="p", error_msg="no token"), Kind.EXPIRED),
        (b.TokenRetrievalError(provider="sso", error_msg="Token has expired and refresh failed"), Kind.EXPIRED),
        (b.CredentialRetrievalError(provider="process", error_msg="exit 1"), Kind.EXPIRED),
        (b.LoginRefreshRequired(), Kind.EXPIRED),
        (b.NoCredentialsError(), Kind.NO_CREDENTIALS),
        (b.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), Kind.NO_CREDENTIALS),
        (b.ProfileNotFound(profile="nobody"), Kind.NO_CREDENTIALS),
        (
            answer("UnrecognizedClientException", "The security token included in the request is invalid."),
            Kind.NO_CREDENTIALS,
        ),
        (answer("InvalidClientTokenId", "", 403, "GetCallerIdentity"), Kind.NO_CREDENTIALS),
        (answer("InvalidAccessKeyId", "", 403, "PutObject"), Kind.NO_CREDENTIALS),
        (answer("SignatureDoesNotMatch", "", 403, "PutObject"), Kind.NO_CREDENTIALS),
        (answer("AccessDeniedException", "not authorized"), Kind.DENIED),
        (answer("403", "Forbidden", 403, "HeadBucket"), Kind.DENIED),
        (answer("ResourceLimitExceeded", "The account-level service limit"), Kind.QUOTA),
        (answer("InsufficientInstanceCapacity", ""), Kind.CAPACITY),
        (
            answer("ValidationException", "CapacityError: Unable to provision requested ML compute capacity."),
            Kind.CAPACITY,
        ),
        (answer("ResourceInUse", "Training job names must be unique"), Kind.EXISTS),
        (answer("ResourceAlreadyExistsException", "", 400, "CreateLogGroup"), Kind.EXISTS),
        (answer("PreconditionFailed", "", 412, "PutObject"), Kind.EXISTS),
        (answer("ValidationException", "Requested resource not found.", 400, "DescribeTrainingJob"), Kind.MISSING),
        (
            answer("ResourceNotFoundException", "The specified log stream does not exist.", 400, "GetLogEvents"),
            Kind.MISSING,
        ),
        (answer("NoSuchKey", "", 404, "GetObject"), Kind.MISSING),
        (answer("404", "Not Found", 404, "HeadObject"), Kind.MISSING),
        (answer("ValidationException", "1 validation error detected"), Kind.INVALID),
        (
            answer("ValidationException", "The request was rejected because the training job is in status Stopped."),
            Kind.INVALID,
        ),
        (answer("PermanentRedirect", "", 301, "PutObject"), Kind.INVALID),
        (b.ParamValidationError(report="Missing required parameter"), Kind.INVALID),
        (answer("SomethingNew", "", 418), Kind.OTHER),
        (KeyError("a bug of ours"), Kind.OTHER),
        (ConnectionResetError("a bug of ours, or another's socket"), Kind.OTHER),
    ],
    ids=lambda value: str(value)[:60],
)
def test_errors_are_told_apart_by_what_can_be_done_about_them(error: BaseException, kind: Kind) -> None:
    assert explain.classify(error) is kind


def test_an_error_that_was_raised_from_another_is_of_its_kind() -> None:
    outer = OrchestrateError("in our words")
    outer.__cause__ = answer("ResourceLimitExceeded")
    assert explain.classify(outer) is Kind.QUOTA


def test_a_bug_that_is_met_while_an_error_is_handled_stays_a_bug() -> None:
    bug = KeyError("TrainingJobStatus")
    bug.__context__ = answer("ThrottlingException")
    assert explain.classify(bug) is Kind.OTHER


def test_a_transfer_that_boto3_wraps_is_of_the_kind_of_what_it_wraps() -> None:
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError

    text = "Failed to upload /x to b/k: An error occurred (AccessDenied) when calling the PutObject operation: Access Denied"
    assert explain.classify(S3UploadFailedError(text)) is Kind.DENIED
    assert explain.classify(RetriesExceededError(b.ReadTimeoutError(**URL))) is Kind.AMBIGUOUS


CONTEXT = {
    "instance": "ml.p3.2xlarge",
    "role": "arn:aws:iam::111122223333:role/Trainer",
    "image": "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1",
    "bucket": "my-bucket",
    "region": "us-east-1",
    "kms_key": "alias/mine",
}
# (code, message, HTTP status), what must be said, what must be suggested; and where the message was read.
REFUSALS = [
    (
        "gabehollombe-aws/jupyter-notebooks#1",
        (
            "ResourceLimitExceeded",
            "The account-level service limit 'ml.p3.2xlarge for training job usage' is 0 Instances, with current "
            "utilization of 0 Instances and a request delta of 1 Instances. Please contact AWS support to request an "
            "increase for this limit.",
            400,
        ),
        "the account's quota 'ml.p3.2xlarge for training job usage' is 0: 0 in use, 1 more asked for",
        ("--instance ml.p3.2xlarge,ml.", "--fallback local", "aws service-quotas request-service-quota-increase"),
    ),
    (
        "data-science-on-aws/data-science-on-aws#200",
        (
            "ResourceLimitExceeded",
            "The account-level service limit 'Number of instances across all processing jobs' is 4 Instances, with "
            "current utilization of 0 Instances and a request delta of 11 Instances. Please contact AWS support to "
            "request an increase for this limit.",
            400,
        ),
        "'Number of instances across all processing jobs' is 4: 0 in use, 11 more asked for",
        ("--desired-value 11",),
    ),
    (
        "aws/amazon-sagemaker-examples#1001",
        (
            "ResourceLimitExceeded",
            "The requested resource training-job/ml.p2.xlarge is not available in this region",
            400,
        ),
        "training-job/ml.p2.xlarge is not available in this region",
        ("another --region",),
    ),
    (
        "aws/amazon-sagemaker-feedback#61",
        (
            "AccessDeniedException",
            "User: arn:aws:sts::111122223333:assumed-role/r/SageMaker is not authorized to perform: iam:PassRole on "
            "resource: arn:aws:iam::111122223333:role/r because no identity-based policy allows the iam:PassRole action",
            400,
        ),
        "you may not hand the role arn:aws:iam::111122223333:role/r to SageMaker",
        ("iam:PassRole", "--role"),
    ),
    (
        "awslabs/predictive-maintenance-using-machine-learning#3",
        (
            "ValidationException",
            "Could not assume role arn:aws:iam::XXX:role/Notebook. Please ensure that the role exists and allows "
            "principal 'sagemaker.amazonaws.com' to assume the role.",
            400,
        ),
        "SageMaker cannot assume the role arn:aws:iam::111122223333:role/Trainer",
        ("--role ARN",),
    ),
    (
        "wpilibsuite/DetectCoral#20",
        (
            "AccessDeniedException",
            "User: arn:aws:sts::111122223333:assumed-role/r/SageMaker is not authorized to perform: "
            "sagemaker:CreateTrainingJob on resource: arn:aws:sagemaker:us-east-1:111122223333:training-job/wpi "
            "with an explicit deny",
            400,
        ),
        "an explicit deny in a policy forbids sagemaker:CreateTrainingJob",
        ("--profile",),
    ),
    (
        "aws/aws-cdk#32294",
        (
            "AccessDeniedException",
            "User: u is not authorized to perform: sagemaker:AddTags on resource: "
            "arn:aws:sagemaker:us-east-1:xxxx:training-job/xxxx because no identity-based policy allows the "
            "sagemaker:AddTags action",
            400,
        ),
        "your login may not put tags on training jobs (sagemaker:AddTags)",
        ("--profile",),
    ),
    (
        "aws/amazon-sagemaker-examples#1476",
        ("ValidationException", "Cannot find the requested image:", 400),
        "SageMaker cannot get the image 111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1",
        ("--image", "ecr:BatchGetImage"),
    ),
    (
        "aws/amazon-sagemaker-examples#2534",
        (
            "ValidationException",
            "Cannot find repository: custompipeline/preprocessor in registry ID: 111122223333 Please check if your ECR "
            "repository exists and role arn:aws:iam::111122223333:role/r has proper pull permissions for SageMaker: "
            "ecr:BatchCheckLayerAvailability, ecr:BatchGetImage, ecr:GetDownloadUrlForLayer",
            400,
        ),
        "SageMaker cannot get the image",
        ("--image",),
    ),
    (
        "aws/deep-learning-containers#5657",
        (
            "ValidationException",
            "The repository of your image 007439368137.dkr.ecr.eu-west-2.amazonaws.com/sagemaker-tritonserver:25.09-py3 "
            "does not grant ecr:GetDownloadUrlForLayer, ecr:BatchGetImage, ecr:BatchCheckLayerAvailability permission "
            "to sagemaker.amazonaws.com service principal.",
            400,
        ),
        "SageMaker cannot get the image",
        ("--image",),
    ),
    (
        "aws/amazon-sagemaker-examples#2489",
        (
            "ValidationException",
            'No S3 objects found under S3 URL "s3://their-bucket/output/train" given in input data source. Please ensure '
            "that the bucket exists in the selected region (us-west-2), that objects exist under that S3 prefix, and "
            'that the role "arn:aws:iam::111122223333:role/r" has "s3:ListBucket" permissions on bucket "their-bucket".',
            400,
        ),
        "there is nothing at s3://their-bucket/output/train, or the role",
        ("aws s3 ls s3://their-bucket/output/train", "s3:ListBucket"),
    ),
    (
        "appvision-ai/fast-bert#151",
        ("NoSuchBucket", "The specified bucket does not exist", 404),
        "there is no bucket my-bucket",
        ("--bucket",),
    ),
    (
        "S3's own code",
        (
            "PermanentRedirect",
            "The bucket you are attempting to access must be addressed using the specified endpoint.",
            301,
        ),
        "the bucket my-bucket is in another region than us-east-1",
        ("aws s3api get-bucket-location --bucket my-bucket",),
    ),
    (
        "aws-samples/secure-data-science-reference-architecture#3",
        (
            "AccessDeniedException",
            "User: arn:aws:sts::111122223333:assumed-role/u/me is not authorized to perform: sagemaker:DescribeTrainingJob",
            400,
        ),
        "your login is not allowed sagemaker:DescribeTrainingJob",
        ("--profile",),
    ),
    (
        "S3's longer words",
        (
            "AccessDenied",
            "User: arn:aws:iam::111122223333:user/me is not authorized to perform: s3:PutObject on resource: "
            '"arn:aws:s3:::my-bucket/x" because no identity-based policy allows the s3:PutObject action',
            403,
        ),
        'your login is not allowed s3:PutObject on resource: "arn:aws:s3:::my-bucket/x"',
        ("--profile",),
    ),
    (
        "KMS's own code",
        ("KMS.NotFoundException", "Invalid keyId alias/mine", 400),
        "KMS refuses the key alias/mine",
        ("--kms-key", "kms:GenerateDataKey"),
    ),
]


@pytest.mark.parametrize(("source", "told", "what", "hints"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_refusal_says_what_it_means_and_what_to_do(
    source: str, told: tuple[str, str, int], what: str, hints: tuple[str, ...]
) -> None:
    code, message, status = told
    error = explain.refusal(answer(code, message, status), doing="create the training job", context=CONTEXT)
    assert isinstance(error, CloudRefused)
    assert what in error.what
    assert "\n" not in error.what
    for hint in hints:
        assert hint in str(error.hint)


@pytest.mark.parametrize(
    ("code", "message", "kind", "what"),
    [
        ("ValidationException", "S3 path s3://clock-data/x is not valid", Kind.INVALID, "does not take it (S3 path"),
        ("ValidationException", "Bad value 'token has expired' at 'tags'", Kind.INVALID, "does not take it"),
        ("ValidationException", "No objects under s3://capacityerror/", Kind.INVALID, "does not take it"),
        ("ValidationException", "Volume size 99999 is too large for instance", Kind.INVALID, "does not take it"),
        ("ValidationException", "No image 1.dkr.ecr/kms:V1 with CMK", Kind.INVALID, "does not take it"),
        ("EntityTooLarge", "Your proposed upload exceeds, the object is too large", Kind.INVALID, "does not take it"),
        (
            "AccessDeniedException",
            "User: u is not authorized to perform: sagemaker:CreateTrainingJob on resource: "
            "arn:aws:sagemaker:us-east-1:111122223333:training-job/orc-kms-1",
            Kind.DENIED,
            "your login is not allowed sagemaker:CreateTrainingJob on resource: arn:",
        ),
    ],
)
def test_a_name_of_the_users_is_never_the_reason(code: str, message: str, kind: Kind, what: str) -> None:
    error = answer(code, message)
    refused = explain.refusal(error, doing="create the training job", context=CONTEXT)
    assert (explain.classify(error), type(refused)) == (kind, CloudRefused)
    assert what in refused.what


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "AccessDeniedException",
            "User: u is not authorized to perform: kms:CreateGrant on resource: arn:aws:kms:x:key/1",
        ),
        ("KMS.DisabledException", "arn:aws:kms:us-east-1:111122223333:key/1 is disabled."),
        ("ValidationException", "The KMS key alias/mine does not exist"),
        ("InvalidArgument", "Server Side Encryption with SSE-KMS managed keys requires HTTPS"),
    ],
)
def test_what_is_of_kms_is_told_as_the_keys(code: str, message: str) -> None:
    refused = explain.refusal(answer(code, message), doing="create the training job", context=CONTEXT)
    assert "KMS refuses the key alias/mine" in refused.what


@pytest.mark.parametrize(
    ("operation", "code", "of_bucket"),
    [
        ("PutObject", "AccessDenied", True),
        ("HeadBucket", "403", True),
        ("UploadPart", "AccessDenied", True),
        ("DescribeTrainingJob", "AccessDeniedException", False),
        ("GetCallerIdentity", "AccessDenied", False),
        ("GetLogEvents", "AccessDeniedException", False),
    ],
)
def test_the_bucket_is_blamed_for_what_s3_denies_alone(operation: str, code: str, of_bucket: bool) -> None:
    error = answer(code, "Access Denied", 403, operation)
    refused = explain.refusal(error, doing="ask for orc-1", context=CONTEXT)
    assert ("no access to the bucket my-bucket, or it is not the account's" in refused.what) is of_bucket
    assert ("--bucket" in str(refused.hint)) is of_bucket
    assert "--profile NAME" in str(refused.hint)


def test_a_denied_transfer_that_boto3_wraps_is_the_buckets() -> None:
    from boto3.exceptions import S3UploadFailedError

    text = "Failed to upload /x to b/k: An error occurred (AccessDenied) when calling the PutObject operation: Access Denied"
    assert "no access to the bucket" in explain.refusal(S3UploadFailedError(text), doing="send", context=CONTEXT).what


def test_without_any_context_a_refusal_still_reads() -> None:
    for _, (code, message, status), _, _ in REFUSALS:
        error = explain.refusal(answer(code, message, status), doing="do it")
        assert error.what.isprintable()
        assert "{" not in error.what
        assert "{" not in str(error.hint)


@pytest.mark.parametrize(
    ("error", "kind", "what", "hint"),
    [
        (b.NoCredentialsError(), LoginNeeded, "no AWS credentials that work", "aws configure --profile me"),
        (b.ProfileNotFound(profile="me"), LoginNeeded, "The config profile (me) could not be found", "list-profiles"),
        (
            answer("ExpiredToken", "The provided token has expired."),
            LoginNeeded,
            "login has expired",
            "aws sso login --profile me",
        ),
        (answer("RequestTimeTooSkewed", "The difference …", 403), LoginNeeded, "clock is wrong", "set the clock"),
        (answer("InvalidSignatureException", "Signature expired: …"), LoginNeeded, "clock is wrong", "set the clock"),
        (
            answer("SignatureDoesNotMatch", "Signature not yet current: …"),
            LoginNeeded,
            "clock is wrong",
            "set the clock",
        ),
        (answer("ResourceInUse", "in use"), Conflict, "it is there already", "nothing was touched"),
        (b.EndpointConnectionError(**URL), CloudRefused, "AWS cannot be reached", "network"),
        (b.ReadTimeoutError(**URL), CloudRefused, "no clear answer", "nothing is done twice"),
        (
            answer("ValidationException", "CapacityError: Unable to provision requested ML compute capacity."),
            CloudRefused,
            "AWS has no machine of this kind to give now",
            "--fallback local",
        ),
        (
            answer("InsufficientInstanceCapacity"),
            CloudRefused,
            "AWS has no machine of this kind",
            "the same command later",
        ),
        (answer("Throttling", "Rate exceeded"), CloudRefused, "AWS asks to wait", "again"),
        (answer("SomethingNew", "\x1b[31mred\x07", 418), CloudRefused, "cannot list: [31mred", "again"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_kind_has_its_error_and_its_exit_code(
    error: BaseException, kind: type[OrchestrateError], what: str, hint: str
) -> None:
    refused = explain.refusal(error, doing="list", context={"profile": "me"})
    assert type(refused) is kind
    assert what in refused.what.replace(" [31m", "[31m") or what in refused.what
    assert "\x1b" not in refused.what
    assert hint in str(refused.hint)
