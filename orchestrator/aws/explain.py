"""What AWS said, told in words: of what kind an error is, what it means in one line, and what to type next.

No SDK is imported: an error of botocore's is known by the names of its classes and by the code in its answer.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.aws.failures import KMS, PULL, Explained, Names, elsewhere, failure, one_line
from orchestrator.errors import CloudRefused, Conflict, LoginNeeded, OrchestrateError

__all__ = ["Explained", "Kind", "classify", "failure", "refusal", "said"]


class Kind(enum.StrEnum):
    """What can be done about an error, told apart by its cause."""

    THROTTLED = enum.auto()
    AMBIGUOUS = enum.auto()
    """Sent, and nobody knows whether it was done: a 5xx, a reset, a time-out, an answer that cannot be read."""
    UNREACHABLE = enum.auto()
    """Never sent: no address, refused, no connection in time."""
    EXPIRED = enum.auto()
    """Logging in again helps; so does setting a clock that is wrong."""
    NO_CREDENTIALS = enum.auto()
    DENIED = enum.auto()
    QUOTA = enum.auto()
    CAPACITY = enum.auto()
    EXISTS = enum.auto()
    MISSING = enum.auto()
    INVALID = enum.auto()
    OTHER = enum.auto()


_CODES: Mapping[Kind, str] = {
    Kind.THROTTLED: """Throttling ThrottlingException ThrottledException RequestThrottled RequestThrottledException
        TooManyRequests TooManyRequestsException RequestLimitExceeded SlowDown BandwidthLimitExceeded
        PriorRequestNotComplete ProvisionedThroughputExceededException EC2ThrottledException 429""",
    Kind.AMBIGUOUS: """InternalFailure InternalError InternalServerError InternalServerException InternalException
        ServiceUnavailable ServiceUnavailableException ServiceException RequestTimeout RequestTimeoutException
        GatewayTimeout 500 502 503 504""",
    Kind.EXPIRED: """ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired InvalidToken
        IDPRejectedClaim RequestTimeTooSkewed RequestInTheFuture""",
    Kind.NO_CREDENTIALS: """UnrecognizedClientException InvalidClientTokenId InvalidAccessKeyId AuthFailure
        MissingAuthenticationToken MissingAuthenticationTokenException MissingSecurityHeader
        SignatureDoesNotMatch InvalidSignatureException IncompleteSignature UnauthorizedException 401""",
    Kind.DENIED: """AccessDenied AccessDeniedException AccessDeniedFault UnauthorizedOperation NotAuthorized
        Forbidden AllAccessDisabled AccountProblem OptInRequired SubscriptionRequiredException 403""",
    Kind.QUOTA: """ResourceLimitExceeded ServiceQuotaExceededException ServiceQuotaExceeded LimitExceeded
        LimitExceededException TooManyBuckets""",
    Kind.CAPACITY: """InsufficientInstanceCapacity InsufficientCapacity InsufficientCapacityException CapacityError
        EC2InsufficientCapacityError InsufficientHostCapacity""",
    Kind.EXISTS: """ResourceInUse ResourceInUseException ResourceAlreadyExistsException BucketAlreadyExists
        BucketAlreadyOwnedByYou EntityAlreadyExists PreconditionFailed ConditionalRequestConflict 409 412""",
    Kind.MISSING: """ResourceNotFound ResourceNotFoundException NoSuchKey NoSuchBucket NoSuchUpload NoSuchEntity
        NoSuchVersion NotFound NotFoundException KMS.NotFoundException 404""",
    Kind.INVALID: """ValidationException ValidationError SerializationException InvalidParameterException
        InvalidParameterValue InvalidParameterCombination InvalidRequest InvalidRequestException InvalidArgument
        InvalidBucketName MalformedXML EntityTooLarge BadDigest InvalidDigest KeyTooLongError
        IllegalLocationConstraintException AuthorizationHeaderMalformed PermanentRedirect TemporaryRedirect
        301 307 400 BadRequest UnknownOperationException""",
}
_KIND_OF_CODE = {code: kind for kind, codes in _CODES.items() for code in codes.split()}
_KIND_OF_CLASS: Mapping[str, Kind] = {
    # Looked for in this order; a class stands before those it derives from.
    "NoCredentialsError": Kind.NO_CREDENTIALS,
    "PartialCredentialsError": Kind.NO_CREDENTIALS,
    "ProfileNotFound": Kind.NO_CREDENTIALS,
    "ConfigParseError": Kind.NO_CREDENTIALS,
    "InvalidConfigError": Kind.NO_CREDENTIALS,
    "MissingDependencyException": Kind.NO_CREDENTIALS,
    "NoAuthTokenError": Kind.NO_CREDENTIALS,
    "UnknownCredentialError": Kind.NO_CREDENTIALS,
    "SSOError": Kind.EXPIRED,
    "LoginError": Kind.EXPIRED,
    "TokenRetrievalError": Kind.EXPIRED,
    "CredentialRetrievalError": Kind.EXPIRED,
    "MetadataRetrievalError": Kind.EXPIRED,
    "RefreshWithMFAUnsupportedError": Kind.EXPIRED,
    "CapacityNotAvailableError": Kind.THROTTLED,  # the SDK's own retry quota
    "EndpointConnectionError": Kind.UNREACHABLE,
    "ConnectTimeoutError": Kind.UNREACHABLE,
    "ProxyConnectionError": Kind.UNREACHABLE,
    "UnknownEndpointError": Kind.UNREACHABLE,
    "HTTPClientError": Kind.AMBIGUOUS,
    "ResponseParserError": Kind.AMBIGUOUS,
    "IncompleteReadError": Kind.AMBIGUOUS,
    "ParamValidationError": Kind.INVALID,
    "EndpointResolutionError": Kind.INVALID,
    "InvalidRegionError": Kind.INVALID,
    "UnknownRegionError": Kind.INVALID,
    "NoRegionError": Kind.INVALID,
    "HTTPError": Kind.AMBIGUOUS,  # urllib3's, while a body is read
}
_SIGNATURE = ("InvalidSignatureException", "SignatureDoesNotMatch", "AuthFailure")
_CLOCK_CODES = ("RequestTimeTooSkewed", "RequestInTheFuture")
_CLOCK_WORDS = r"Signature expired|Signature not yet current"
# What the code alone does not tell: a part of the message, names of the user's left out, and what it makes of the error.
_KIND_OF_WORDS = (
    (r"security token .*(expired|invalid)|token has expired|ExpiredToken", Kind.EXPIRED),
    (r"Requested resource not found|Could not find training job", Kind.MISSING),
    (r"CapacityError|Unable to provision requested ML compute capacity|Insufficient ?capacity", Kind.CAPACITY),
    (r"Rate exceeded|reduce your request rate", Kind.THROTTLED),
)
_NAMED = re.compile(r"arn:\S+|s3://\S+|(?<!\w)'[^']*'|\"[^\"]*\"")
_SDKS = ("botocore", "boto3", "s3transfer", "urllib3")
_NEVER_SENT = r"CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|handshake|certificate verify failed|hostname"


def classify(error: BaseException) -> Kind:
    """Of what kind an error of the SDK's is; an error that was raised from one is of its kind."""
    for one in _chain(error):
        kind = _kind_of(one)
        if kind is not Kind.OTHER:
            return kind
    return Kind.OTHER


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error*, and what it was raised from: boto3's transfers wrap the SDK's errors, and so do our own.

    A bug that was met while an error was being handled is a bug, and nothing else.
    """
    for _ in range(10):
        if error is None:
            return
        yield error
        last = getattr(error, "last_exception", None)
        if _is_the_sdks(error):
            error = last if isinstance(last, BaseException) else error.__cause__ or error.__context__
        else:
            error = error.__cause__ if isinstance(error, OrchestrateError) else None


def _is_the_sdks(error: BaseException) -> bool:
    return any(one.__module__.startswith(_SDKS) for one in type(error).__mro__)


def _kind_of(error: BaseException) -> Kind:
    code, message, status = _answer(error)
    if code or status:
        return _kind_of_answer(code, message, status)
    names = [one.__name__ for one in type(error).__mro__]
    if "SSLError" in names:
        return Kind.UNREACHABLE if re.search(_NEVER_SENT, str(error), re.IGNORECASE) else Kind.AMBIGUOUS
    if not any(
        one.__module__.startswith(("botocore", "boto3", "s3transfer", "urllib3")) for one in type(error).__mro__
    ):
        return Kind.OTHER
    for name, kind in _KIND_OF_CLASS.items():
        if name in names:
            return kind
    # boto3.exceptions.S3UploadFailedError keeps the answer in its text alone.
    told = re.search(r"An error occurred \(([\w.]+)\)", str(error))
    return _KIND_OF_CODE.get(told[1], Kind.OTHER) if told else Kind.OTHER


def _kind_of_answer(code: str, message: str, status: int) -> Kind:
    if _is_the_clock(code, message):
        return Kind.EXPIRED
    if code in ("ValidationException", "400", *_SIGNATURE):
        bare = _NAMED.sub("", message)
        for pattern, kind in _KIND_OF_WORDS:
            if re.search(pattern, bare, re.IGNORECASE):
                return kind
    if code in _KIND_OF_CODE:
        return _KIND_OF_CODE[code]
    if code.startswith("KMS."):
        return Kind.DENIED
    if status == 429:
        return Kind.THROTTLED
    if status >= 500:
        return Kind.AMBIGUOUS
    return _KIND_OF_CODE.get(str(status), Kind.OTHER)


def _is_the_clock(code: str, message: str) -> bool:
    return code in _CLOCK_CODES or (code in _SIGNATURE and re.search(_CLOCK_WORDS, message) is not None)


def _answer(error: BaseException) -> tuple[str, str, int]:
    """Code, message and HTTP status of the service's answer that *error* carries, if it does."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return "", "", 0
    told = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(told.get("Code", "")), str(told.get("Message", "")), int(status or 0)


def said(error: BaseException) -> str:
    """The service's own words in one line that may be printed, without the SDK's frame around them."""
    text = next((message for message in (_answer(one)[1] for one in _chain(error)) if message), str(error))
    text = re.sub(r"^An error occurred \([^)]*\) when calling the \w+ operation(?: \([^)]*\))?: ", "", text)
    return one_line(text)


def refusal(error: BaseException, *, doing: str, context: Mapping[str, str] | None = None) -> OrchestrateError:
    """*error* as an error of ours: what happened while *doing* something, in one line, and what to type next.

    context, all of it optional: instance, role, image, bucket, region, kms_key, profile, job, run.
    """
    kind, words, context = classify(error), said(error), context or {}
    code = next((code for code in (_answer(one)[0] for one in _chain(error)) if code), "")
    if any(_is_the_clock(*_answer(one)[:2]) for one in _chain(error)):
        return LoginNeeded(f"cannot {doing}: this machine's clock is wrong ({words})", hint=_SET_CLOCK)
    if kind in (Kind.EXPIRED, Kind.NO_CREDENTIALS):
        return _login(kind, words, doing, context)
    if kind is Kind.QUOTA:
        what, hint = _quota(words, context)
        return CloudRefused(what, hint=hint)
    if kind is Kind.CAPACITY:
        instance = context.get("instance")
        what = f"cannot {doing}: AWS has no {instance or 'machine of this kind'} to give now, here"
        return CloudRefused(what, hint=f"{elsewhere(instance)}; or the same command later")
    for pattern, what, hint in _REFUSALS:
        match = re.search(pattern, f"{code}: {words}", re.IGNORECASE)
        if match:
            names = Names(context, match.groupdict())
            return CloudRefused(f"cannot {doing}: {what.format_map(names)}", hint=hint.format_map(names))
    return _plain_refusal(kind, words, doing, context, of_s3=_of_s3(error))


def _of_s3(error: BaseException) -> bool:
    """Was the call that failed one of S3's?"""
    for one in _chain(error):
        # boto3.exceptions.S3UploadFailedError keeps the call in its text alone.
        found = re.search(r"when calling the (\w+) operation", str(one))
        operation = getattr(one, "operation_name", None) or (found[1] if found else None)
        if operation:
            return re.search(r"Bucket|Object|Multipart|UploadPart|ListParts", operation) is not None
    return False


_SET_CLOCK = "set the clock (timedatectl set-ntp true; on macOS: sntp -sS time.apple.com), then the same command again"
_ACTION = r"[\w:*-]+(?: on resource: [^\s,]+)?"
# What the service refuses at once: a pattern over `code: words`, what it means, what to do. The first that fits.
_REFUSALS = (
    (
        r"perform: iam:PassRole on resource: (?P<resource>[^\s,]+)",
        "you may not hand the role {resource} to SageMaker",
        "allow yourself iam:PassRole on it for sagemaker.amazonaws.com, or another --role",
    ),
    (
        r"(Could not|unable to) assume( the)? role|perform: sts:AssumeRole|trust relationship",
        "SageMaker cannot assume the role {role}: it is missing, or does not trust sagemaker.amazonaws.com",
        "aws iam get-role --role-name NAME shows its trust policy; the whole ARN, path and all: --role ARN",
    ),
    (
        rf"perform: (?P<action>{_ACTION}).* explicit deny",
        "an explicit deny in a policy forbids {action}",
        "ask whoever runs the AWS account; or another login: --profile NAME",
    ),
    (
        r"(grant|perform:) (ecr:|.*ecr:\w+)|Cannot find (the requested image|repository)|image.* (does not exist|not found)",
        "SageMaker cannot get the image {image}",
        f"--image of one that is there, in the job's region and account; the role needs {PULL}",
    ),
    (
        KMS,
        "KMS refuses the key {kms_key}",
        "--kms-key of one in the job's region; you and the role need kms:GenerateDataKey, kms:Decrypt and kms:CreateGrant",
    ),
    (
        r"perform: sagemaker:AddTags",
        "your login may not put tags on training jobs (sagemaker:AddTags)",
        "have it allowed: by its tags a job that was made is found again; or another login: --profile NAME",
    ),
    (
        rf"perform: (?P<action>{_ACTION})",
        "your login is not allowed {action}",
        "have it allowed, or take another login: --profile NAME",
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|BucketRegionError"
        r"|must be in the same region|^301|region '[\w-]+' is wrong",
        "the bucket {bucket} is in another region than {region}",
        "--bucket of one in {region}, or --region of the bucket: aws s3api get-bucket-location --bucket {bucket}",
    ),
    (
        r"No S3 objects found under S3 URL \"?(?P<uri>s3://[^\s\"]+)",
        "there is nothing at {uri}, or the role {role} may not list it",
        "aws s3 ls {uri}; the role needs s3:ListBucket and s3:GetObject there",
    ),
    (
        r"NoSuchBucket|bucket does not exist",
        "there is no bucket {bucket}",
        "--bucket NAME of one that is there: aws s3 ls lists yours",
    ),
)


def _login(kind: Kind, words: str, doing: str, context: Mapping[str, str]) -> OrchestrateError:
    profile = f" --profile {context['profile']}" if context.get("profile") else ""
    if kind is Kind.EXPIRED:
        what = f"your AWS login has expired, so this could not be done: {doing} ({words})"
        hint = f"aws sso login{profile} (or new keys: aws configure{profile}), then the same command again"
        return LoginNeeded(what, hint=hint)
    if "profile" in words:
        return LoginNeeded(f"cannot {doing}: {words}", hint="aws configure list-profiles, then --profile NAME")
    hint = f"aws sso login{profile}, or aws configure{profile}; --fallback local runs here, --rehearse needs no login"
    return LoginNeeded(f"cannot {doing}: no AWS credentials that work ({words})", hint=hint)


_QUOTA = re.compile(
    r"service limit '(?P<name>[\w .,/()-]+)' is (?P<limit>[\d.]+) \w+, "
    r"with current utilization of (?P<used>[\d.]+) \w+ and a request delta of (?P<more>[\d.]+)"
)


def _quota(words: str, context: Mapping[str, str]) -> tuple[str, str]:
    others = elsewhere(context.get("instance"))
    found = _QUOTA.search(words)
    if found is None:
        place = f" in {context['region']}" if context.get("region") else ""
        return f"the account's limits do not allow it{place}: {words}", f"{others}, or another --region"
    what = f"the account's quota {found['name']!r} is {found['limit']}: {found['used']} in use, {found['more']} more asked for"
    least = int(float(found["used"]) + float(found["more"]))
    query = f"Quotas[?QuotaName=='{found['name']}'].QuotaCode"
    hint = (
        f'{others}; to have more: aws service-quotas list-service-quotas --service-code sagemaker --query "{query}", '
        f"then aws service-quotas request-service-quota-increase --service-code sagemaker --quota-code CODE "
        f"--desired-value {least}"
    )
    return what, hint


def _plain_refusal(kind: Kind, words: str, doing: str, context: Mapping[str, str], *, of_s3: bool) -> OrchestrateError:
    bucket = context.get("bucket")
    if kind is Kind.EXISTS:
        return Conflict(f"cannot {doing}: it is there already ({words})", hint="nothing was touched; another --name")
    what, hint = f"cannot {doing}: {words}", "the same command again; orchestrate status shows how the run stands"
    if kind is Kind.THROTTLED:
        what, hint = f"cannot {doing}: AWS asks to wait ({words})", "the same command again in a minute"
    elif kind is Kind.AMBIGUOUS:
        what, hint = f"no clear answer from AWS to: {doing} ({words})", "the same command again: nothing is done twice"
    elif kind is Kind.UNREACHABLE:
        what, hint = f"cannot {doing}: AWS cannot be reached ({words})", "look at the network, proxy and --region"
    elif kind is Kind.DENIED and bucket and of_s3:
        # S3 says no more than this of a bucket that is another account's, or closed to this login.
        what = f"cannot {doing}: no access to the bucket {bucket}, or it is not the account's of the role"
        hint = "--bucket NAME of one in that account; or another login: --profile NAME"
    elif kind is Kind.DENIED:
        what, hint = f"cannot {doing}: not allowed ({words})", "have it allowed, or another login: --profile NAME"
    elif kind is Kind.MISSING:
        what, hint = f"cannot {doing}: it is not there ({words})", "orchestrate list shows the runs; is --region right?"
    elif kind is Kind.INVALID:
        what, hint = f"cannot {doing}: AWS does not take it ({words})", "orchestrate submit --dry-run --json shows it"
    return CloudRefused(what, hint=hint)
