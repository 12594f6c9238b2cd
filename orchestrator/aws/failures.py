"""Why a training job ended, from the reason that SageMaker gives and the script's own last lines: what, and what next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Explained:
    """Why a run did not succeed: *kind* for programs (a Kind's value where there is one), the rest for people."""

    kind: str
    what: str
    hint: str


# KMS itself is meant, an action of it or an error: not a bucket, an image or a run whose name has these letters.
KMS = r"(?-i:\bKMS\.[A-Z]|(?<![\w/.-])kms:[A-Z*]|(?<![\w/.'\"-])(?:SSE-|AWS-)?KMS\b(?!-\d))"
PULL = "ecr:BatchGetImage, ecr:GetDownloadUrlForLayer, ecr:BatchCheckLayerAvailability and ecr:GetAuthorizationToken"
Failure = tuple[str, str, str, str]
# Why a job ended: a pattern, the kind, what it means, what to do. The first that fits. What the service says of itself:
_SERVICE_FAILURES: Sequence[Failure] = (
    (
        r"CapacityError|Unable to provision requested ML compute|Insufficient.?(Instance)?Capacity",
        "capacity",
        "AWS had no {instance} to give; nothing is billed",
        "{elsewhere}; or the same command later",
    ),
    (r"ResourceLimitExceeded|account-level service limit", "quota", "the account's quota was used up", "{elsewhere}"),
    (
        r"Cannot pull algorithm container|ImagePull|pull.*(image|container)|Cannot find the requested image|perform: ecr:",
        "image",
        "the image could not be pulled: it is not there, the role may not read it, or the disk is too small for it",
        f"--image of one in the job's region, a role with {PULL}; a larger --volume",
    ),
    (
        r"unable to (assume the role|perform: sts:AssumeRole)|trust relationship",
        "role",
        "SageMaker could not assume the role: it is missing, or does not trust sagemaker.amazonaws.com",
        "--role ARN, whole and with its path, of a role that sagemaker.amazonaws.com may assume",
    ),
    (
        r"BucketRegionError|bucket must be in the same region|PermanentRedirect",
        "region",
        "a bucket is in another region than the job",
        "--bucket and --data in the job's region, or --region of the bucket",
    ),
    (
        r"route to an S3 VPC endpoint|network ACL allow outbound",
        "network",
        "from the subnet there is no way to S3",
        "an S3 gateway endpoint in the subnet's route table, or another --subnet",
    ),
    (
        KMS,
        "kms",
        "a key of KMS was refused",
        "the role needs kms:GenerateDataKey, kms:Decrypt and kms:CreateGrant on it; or another --kms-key",
    ),
    (
        r"Data download failed.*(AccessDenied|Forbidden|403)|download.*(AccessDenied|403)",
        "data",
        "the role may not read the data",
        "s3:GetObject and s3:ListBucket on it for the role, or another --role",
    ),
    (
        r"Data download failed.*(NoSuchKey|404|Not ?Found|NoSuchBucket)|No S3 objects found|no file found in path",
        "data",
        "the data is not there",
        "aws s3 ls on what --data names",
    ),
    (
        r"Data download failed",
        "data",
        "the data could not be downloaded",
        "aws s3 ls on what --data names, with the role",
    ),
    (
        r"Artifact upload failed|[Uu]nable to upload|model\.tar\.gz.*fail",
        "output",
        "what the run left could not be uploaded",
        "s3:PutObject for the role beneath the bucket's orchestrate/; the checkpoints that went before are there",
    ),
    (
        r"MaxWaitTimeExceeded",
        "limit",
        "the time to wait for spot machines and run on them was over",
        "--resume-from {run} with a longer --max-wait, or without --spot",
    ),
    (
        r"MaxRuntimeExceeded",
        "limit",
        "the run was stopped at its limit of time",
        "--resume-from {run} with a higher --max-hours or --budget",
    ),
    (
        r"InternalServerError|encountered an internal error",
        "internal",
        "SageMaker itself failed",
        "the same command again with --resume-from {run}; if it does so again, AWS support has the reason",
    ),
    (
        r"\bInterrupted\b|spot (instance )?(was )?(interrupted|reclaimed)|SpotInterruption",
        "spot",
        "the spot machine was taken away",
        "--resume-from {run}; or without --spot",
    ),
)
# And what a script says, in the job's reason or its last error.
_SCRIPT_FAILURES: Sequence[Failure] = (
    (
        r"No space left on device|Errno 28\b|disk (is )?full",
        "disk",
        "the machine's disk is full",
        "a larger --volume, and fewer checkpoints kept",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError: CUDA|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        "gpu-memory",
        "the GPU's memory was too small",
        "a smaller batch, or --instance with more GPU memory",
    ),
    (
        r"instance type with more memory|std::bad_alloc|Cannot allocate memory|MemoryError|DefaultCPUAllocator: can't alloc",
        "memory",
        "the machine's memory was too small",
        "a smaller batch, fewer data workers, or --instance with more memory",
    ),
    (
        r"no kernel image is available",
        "image",
        "the image's PyTorch has no code for this GPU",
        "leave --image and --torch out: what runs on the machine is chosen then",
    ),
    (
        r"bus error|unable to (open|allocate) shared memory|/dev/shm",
        "shared-memory",
        "the data loader's shared memory was too small",
        "fewer data workers (num_workers), or a larger --instance",
    ),
    (
        r"FileNotFoundError.*([Cc]heckpoint|ckpt)|checkpoint.*(not found|does not exist|missing)",
        "checkpoint",
        "the script found no checkpoint to go on from",
        "--resume-from RUN names the run whose checkpoints to begin with: orchestrate list",
    ),
    (
        r"No module named '?(?P<module>[\w.]+)'?",
        "requirement",
        "the package {module} is not in the image",
        "name it in requirements.txt beside the script",
    ),
    (
        r"cannot install requirements|No matching distribution found|ResolutionImpossible",
        "requirement",
        "a package of requirements.txt could not be installed",
        "pip install -r requirements.txt in a fresh environment shows which",
    ),
    (
        r"package is not the one submitted",
        "package",
        "what lay in the bucket was not what was submitted; the script was not started",
        "see who else writes beneath the bucket's orchestrate/code/, then orchestrate submit --again",
    ),
    (
        r"NCCL error|ncclUnhandledCudaError|ncclSystemError|ncclRemoteError|Connection closed by peer|Socket Timeout",
        "distributed",
        "the machines of the run lost each other",
        "the first host's own error is in orchestrate logs {run}; --env NCCL_DEBUG=INFO tells more",
    ),
)
_EXIT_CODES: Mapping[int, tuple[str, str, str]] = {
    137: (
        "memory",
        "the script was killed (137): nearly always because the machine's memory ran out",
        "a smaller batch, fewer data workers, or --instance with more memory",
    ),
    139: (
        "crash",
        "the script crashed in native code (139)",
        "--env PYTHONFAULTHANDLER=1 shows where; often a package built for another PyTorch",
    ),
    132: ("crash", "the script used an instruction that this processor lacks (132)", "another --instance"),
    143: ("stopped", "the script was told to stop (143) and did", "--resume-from {run} goes on"),
}
_ERROR_LINE = re.compile(r"(?:\s*\[[^\]]*\]:?)*\s*(?P<error>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b.*)")


def failure(
    reason: str,
    *,
    exit_codes: Sequence[int] = (),
    lines: Sequence[str] = (),
    context: Mapping[str, str] | None = None,
) -> Explained:
    """Why a job failed: *reason* as the service gives it, the exit codes of its hosts, the script's last *lines*.

    context, all of it optional: run, instance, max_hours.
    """
    context = context or {}
    reason = reason or ""
    codes = [abs(code) + 128 if code < 0 else code for code in exit_codes]
    codes += [int(code) for code in re.findall(r"[Ee]xit [Cc]ode:? '?(\d+)", reason)]
    by_script = reason.startswith("AlgorithmError") or not reason
    error = _last_error([*reason.splitlines(), *lines]) if by_script else one_line(reason)
    # An error that the script met and mended earlier is no reason: of its lines only the last error counts.
    texts = (reason, error or "\n".join(lines[-5:])) if by_script else (reason,)
    for text in texts:
        for pattern, kind, what, hint in _SCRIPT_FAILURES if by_script else (*_SERVICE_FAILURES, *_SCRIPT_FAILURES):
            match = re.search(pattern, text)
            if match:
                return _explained(kind, what, hint, error, Names(context, match.groupdict()))
    for code in codes:
        if code in _EXIT_CODES:
            return _explained(*_EXIT_CODES[code], error, Names(context, {}))
    if not codes and not reason.startswith("AlgorithmError"):
        return Explained("other", one_line(reason) or "no reason was given", _logs_hint(context))
    failed = [code for code in codes if code]
    exited = f"the script ended with exit code {failed[0]}" if failed else "the script failed"
    return _explained("script", exited, _logs_hint(context), error, Names(context, {}))


def _logs_hint(context: Mapping[str, str]) -> str:
    return f"orchestrate logs {context['run']} shows all of it" if context.get("run") else "the log shows all of it"


def _explained(kind: str, what: str, hint: str, error: str, names: Mapping[str, str]) -> Explained:
    """The finished text, with the *error* that tells more, where there is one."""
    what = what.format_map(names)
    told_already = kind in ("limit", "spot")  # their reason is one word of the service's
    return Explained(kind, what if told_already or not error else f"{what}: {error}", hint.format_map(names))


def _last_error(lines: Sequence[str]) -> str:
    """The last line of *lines* that names an exception, without marks of hosts and ranks before it."""
    found = [match for line in lines if (match := _ERROR_LINE.match(_SERVICE.sub("", line)))]
    return re.sub(r", exit code: -?\d+$", "", one_line(found[-1]["error"])) if found else ""


_SERVICE = re.compile(r"^(ClientError|AlgorithmError|CapacityError|InternalServerError)\b:? ?")


def one_line(text: str, limit: int = 300) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = re.sub(r" {2,}", " ", text).strip().rstrip(".")
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Names(dict[str, str]):
    """What a message may name: the pattern's groups, the context, and for what neither knows its name: `RUN`."""

    def __init__(self, context: Mapping[str, str], found: Mapping[str, str | None]) -> None:
        super().__init__({**context, **{name: text for name, text in found.items() if text}})
        self["elsewhere"] = elsewhere(context.get("instance"))

    def __missing__(self, name: str) -> str:
        return name.upper().replace("_", "-")


def elsewhere(instance: str | None) -> str:
    """Other machines, as the option to type: the one that was refused, then the nearest to it; or this machine."""
    from estimates import catalog

    known = {machine.name: machine for machine in catalog.machines("sagemaker")}
    near = catalog.nearest(known[instance], "sagemaker") if instance in known else None
    other = f"--instance {instance},{near.name}" if near else "another --instance"
    return f"{other}, or --fallback local"
