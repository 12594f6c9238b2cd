"""What a host of a training job sees and leaves: its /opt/ml, its environment, and their way from S3 and back.

Folders and names are SageMaker's. Each S3 error becomes a Failed whose text reads like a job's FailureReason.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import site
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.rehearsal.container import SAGEMAKER_ROOT

GROUP = "homogeneousCluster"  # what SageMaker calls the only instance group
INTERFACE = "lo"  # eth0 in the cloud: hosts of a rehearsal meet on the loopback interface
FOLDERS = ("input/config", "input/data", "model", "output/data", "output/intermediate", "code")
FAILURE_CHARACTERS = 1024
DUMMY_CREDENTIALS = "rehearsal"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SECRET_FOLDERS = (".aws", ".ssh", ".config/gcloud")

Request = Mapping[str, Any]


class Failed(Exception):
    """The job cannot go on; the text is its FailureReason."""


@dataclass(frozen=True)
class Host:
    name: str  # algo-1
    group: str
    instance_type: str
    address: str  # of its own on the loopback interface
    root: Path  # what is /opt/ml inside
    private: Path  # what is of no interest after the end


def plan_hosts(request: Request, folder: Path) -> list[Host]:
    """The hosts of a job, below *folder*. Two jobs get different addresses."""
    resources = request["ResourceConfig"]
    groups = resources.get("InstanceGroups") or [{**resources, "InstanceGroupName": GROUP}]
    network = f"127.{64 + secrets.randbelow(64)}.{secrets.randbelow(256)}"
    hosts: list[Host] = []
    for group in groups:
        for _ in range(group.get("InstanceCount", 1)):
            name = f"algo-{len(hosts) + 1}"
            made = (folder / name, folder / f"{name}.private")
            if len(hosts) == 250:
                raise Failed("InternalServerError: a rehearsal runs at most 250 hosts")
            address = f"{network}.{len(hosts) + 2}"
            hosts.append(Host(name, group["InstanceGroupName"], group.get("InstanceType", ""), address, *made))
    return hosts


def lay_out(hosts: list[Host], request: Request, names: Mapping[str, str]) -> None:
    """Make each host's folders and configuration files. *names*: what a host is called in them."""
    for host in hosts:
        for folder in (*FOLDERS, checkpoint_folder(request)):
            (host.root / folder).mkdir(parents=True, exist_ok=True)
        (host.private / "home").mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{other.address} {other.name}" for other in hosts)]
        (host.private / "hosts").write_text("\n".join(lines) + "\n")
        config = host.root / "input/config"
        for name, value in (
            ("hyperparameters", dict(request.get("HyperParameters") or {})),
            ("resourceconfig", resource_config(host, hosts, names)),
            (
                "inputdataconfig",
                {channel["ChannelName"]: channel_config(channel, request) for channel in channels(request)},
            ),
        ):
            (config / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        if checkpoints := request.get("CheckpointConfig"):
            (config / "checkpointconfig.json").write_text(json.dumps(dict(checkpoints)), encoding="utf-8")


def resource_config(host: Host, hosts: list[Host], names: Mapping[str, str]) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for other in hosts:
        empty = {"instance_group_name": other.group, "instance_type": other.instance_type, "hosts": []}
        groups.setdefault(other.group, empty)["hosts"].append(names[other.name])
    return {
        "current_host": names[host.name],
        "current_instance_type": host.instance_type,
        "current_group_name": host.group,
        "hosts": [names[other.name] for other in hosts],
        "instance_groups": list(groups.values()),
        "network_interface_name": INTERFACE,
    }


def channels(request: Request) -> list[dict[str, Any]]:
    return list(request.get("InputDataConfig") or [])


def input_mode(channel: Request, request: Request) -> str:
    return str(channel.get("InputMode") or request["AlgorithmSpecification"].get("TrainingInputMode") or "File")


def channel_config(channel: Request, request: Request) -> dict[str, str]:
    source = channel["DataSource"].get("S3DataSource") or {}
    config = {
        "TrainingInputMode": input_mode(channel, request),
        "S3DistributionType": source.get("S3DataDistributionType") or "FullyReplicated",
        "RecordWrapperType": channel.get("RecordWrapperType") or "None",
    }
    return {**config, "ContentType": channel["ContentType"]} if channel.get("ContentType") else config


def below_root(path: str, what: str) -> str:
    """*path* relative to /opt/ml. Raises Failed where it is elsewhere: only that folder is a host's own."""
    inside = PurePosixPath(os.path.normpath(path))
    if not inside.is_relative_to(SAGEMAKER_ROOT) or str(inside) == SAGEMAKER_ROOT:
        raise Failed(f"InternalServerError: a rehearsal has {what} below {SAGEMAKER_ROOT} only, not in {path}")
    return str(inside.relative_to(SAGEMAKER_ROOT))


def checkpoint_folder(request: Request) -> str:
    path = (request.get("CheckpointConfig") or {}).get("LocalPath") or f"{SAGEMAKER_ROOT}/checkpoints"
    return below_root(path, "checkpoints")


# ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────────


def container_environment(
    host: Host, request: Request, arn: str, region: str, endpoint: str, root: Path | None
) -> dict[str, str]:
    """All that the container's first process has: nothing of the caller's. *root*: where /opt/ml is not the real one."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",  # python3 is the one that rehearses
        "HOME": str(host.private / "home"),
        "LANG": "C.UTF-8",
        "HOSTNAME": host.name,
        "TRAINING_JOB_NAME": request["TrainingJobName"],
        "TRAINING_JOB_ARN": arn,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if user_packages := user_base():
        environment["PYTHONUSERBASE"] = user_packages
    if not request.get("EnableNetworkIsolation"):  # such a container gets no credentials in the cloud either
        environment["AWS_ENDPOINT_URL"] = endpoint
        environment["AWS_ACCESS_KEY_ID"] = environment["AWS_SECRET_ACCESS_KEY"] = DUMMY_CREDENTIALS
    environment |= request.get("Environment") or {}
    if root is not None:
        environment["ORCHESTRATE_ROOT"] = str(root)
    return environment


def present(folders: Iterable[Path]) -> list[str]:
    """Those of *folders* that are there, and may be looked into."""
    found = []
    for folder in folders:
        with contextlib.suppress(OSError):
            found += [str(folder)] * folder.is_dir()
    return found


def user_base() -> str | None:
    """The folder of the caller's own packages (pip install --user), where this Python looks into it."""
    return site.getuserbase() if site.ENABLE_USER_SITE and present([Path(site.getusersitepackages())]) else None


def protected_folders() -> list[str]:
    """What a pip install in a container would change on this machine."""
    return present(Path(path) for path in (sys.prefix, user_base()) if path)


def hidden_folders() -> list[str]:
    """Where keys of the caller lie that no cloud's container has."""
    return present(Path.home() / name for name in SECRET_FOLDERS)


def command(request: Request, root: Path | None) -> list[str]:
    """The container's command. Raises Failed without one: an image's own entry point cannot be run."""
    algorithm = request["AlgorithmSpecification"]
    words = [*(algorithm.get("ContainerEntrypoint") or []), *(algorithm.get("ContainerArguments") or [])]
    if not algorithm.get("ContainerEntrypoint"):
        image = algorithm.get("TrainingImage") or algorithm.get("AlgorithmName")
        raise Failed(
            f"AlgorithmError: a rehearsal does not run images, and the entry point is in {image}: "
            "give the job a ContainerEntrypoint, exit code: 127"
        )
    if root is None:
        return words
    return [re.sub(re.escape(SAGEMAKER_ROOT) + r"(?![\w.-])", lambda _: str(root), word) for word in words]


@contextlib.contextmanager
def plain_paths(hosts: list[Host]) -> Iterator[list[Path]]:
    """Each host's root under a path that a shell needs not quote: requests name /opt/ml within shell commands."""
    if all(re.fullmatch(r"[\w./+-]+", str(host.root), re.ASCII) for host in hosts):
        yield [host.root for host in hosts]
        return
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        links = [Path(folder) / host.name for host in hosts]
        for link, host in zip(links, hosts, strict=True):
            link.symlink_to(host.root)
        yield links


# ── from S3 ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def s3_errors(doing: str) -> Iterator[None]:
    """Turn what S3 or the disk says into a Failed: refusals are the job's fault, everything else the service's."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        told = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        kind = "ClientError" if status < 500 else "InternalServerError"
        raise Failed(f"{kind}: {doing} failed:{told.get('Code')} ({status}): {told.get('Message')}") from error
    except (BotoCoreError, HTTPClientError, OSError) as error:
        raise Failed(f"InternalServerError: {doing} failed:{error}") from error


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def list_keys(s3: Any, bucket: str, prefix: str) -> list[str]:
    """The objects under *prefix*, sorted, without the empty ones that stand for folders."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return sorted(key for key in found if not key.endswith("/"))


def place_of(key: str, prefix: str) -> str:
    """Where the object *key* goes within its channel: what follows the last whole folder of *prefix*."""
    rest = key[len(prefix) :]
    place = rest.lstrip("/") if prefix.endswith("/") or rest.startswith("/") else key[prefix.rfind("/") + 1 :]
    if not place or ".." in place.split("/") or "\0" in place:
        raise Failed(f"ClientError: Data download failed:the key {key!r} cannot be a file's name")
    return place


def download(s3: Any, bucket: str, key: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body, target.open("wb") as file:
        shutil.copyfileobj(body, file, 1 << 20)


def download_channels(s3: Any, hosts: list[Host], request: Request, region: str, go_on: Callable[[], None]) -> None:
    """Fill each host's input/data. *go_on* is called before each object, and may raise. Raises Failed."""
    for channel in channels(request):
        name, mode = channel["ChannelName"], input_mode(channel, request)
        source = channel["DataSource"].get("S3DataSource")
        if source is None or source["S3DataType"] != "S3Prefix" or mode not in ("File", "FastFile"):
            kind = source["S3DataType"] if source else next(iter(channel["DataSource"]), "nothing")
            raise Failed(
                f"ClientError: Data download failed:channel {name}: a rehearsal has S3Prefix in File or FastFile mode, "
                f"not {kind} in {mode} mode"
            )
        bucket, prefix = split_uri(source["S3Uri"])
        with s3_errors("Data download"):
            keys = list_keys(s3, bucket, prefix)
        if not keys:
            raise Failed(
                f'ClientError: Data download failed:No S3 objects found under S3 URL "{source["S3Uri"]}" given in input '
                f"data source. Please ensure that the bucket exists in the selected region ({region}), that objects exist "
                f'under that S3 prefix, and that the role "{request.get("RoleArn")}" has "s3:ListBucket" permissions on '
                f'bucket "{bucket}".'
            )
        sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
        for number, key in enumerate(keys):
            go_on()
            wanted = [hosts[number % len(hosts)]] if sharded else hosts
            first, *others = [host.root / "input/data" / name / place_of(key, prefix) for host in wanted]
            with s3_errors("Data download"):
                download(s3, bucket, key, first)
                for other in others:
                    other.parent.mkdir(parents=True, exist_ok=True)
                    # A FastFile channel is read-only, so one file serves all; a script may change File's.
                    os.link(first, other) if mode == "FastFile" else shutil.copyfile(first, other)


def read_only_folders(host: Host, request: Request) -> list[str]:
    """The channels that a script cannot write to. (Seen through the host's folder, which is then mounted as /opt/ml.)"""
    names = [channel["ChannelName"] for channel in channels(request) if input_mode(channel, request) == "FastFile"]
    return [str(folder) for name in names if (folder := host.root / "input/data" / name).is_dir()]


# ── to S3 ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def upload(s3: Any, path: Path, bucket: str, key: str, extra: Mapping[str, str] | None = None) -> None:
    from boto3.exceptions import S3UploadFailedError
    from boto3.s3.transfer import TransferConfig

    try:
        s3.upload_file(str(path), bucket, key, ExtraArgs=dict(extra or {}), Config=TransferConfig(use_threads=False))
    except S3UploadFailedError as error:
        raise error.__context__ or error from error


class Synced:
    """A folder of a host that is copied to S3 as it changes. Not thread-safe.

    What the host deletes is deleted in S3 too, as SageMaker's documentation has it; what another host put there stays.
    """

    def __init__(self, s3: Any, folder: Path, uri: str, *, growing: bool = False) -> None:
        """*growing*: its files are appended to, so none is waited for until it stops changing."""
        self._s3, self._folder, self._growing = s3, folder, growing
        self._bucket, prefix = split_uri(uri)
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""
        self._stored: dict[str, tuple[int, int]] = {}
        self._before: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Bring the folder to what is in S3. Raises Failed."""
        with s3_errors("Checkpoint download"):
            for key in list_keys(self._s3, self._bucket, self._prefix):
                download(self._s3, self._bucket, key, self._folder / place_of(key, self._prefix))
        self._stored = self._seen()

    def sweep(self, *, last: bool = False) -> None:
        """Bring S3 to what is in the folder; but for the *last* time, not files that changed since the sweep before.

        Raises Failed.
        """
        seen = self._seen()
        for name, mark in seen.items():
            settled = last or self._growing or self._before.get(name) == mark
            if self._stored.get(name) == mark or not settled:
                continue
            with contextlib.suppress(FileNotFoundError), s3_errors_but_missing("Checkpoint upload"):
                upload(self._s3, self._folder / name, self._bucket, self._prefix + name)
                self._stored[name] = mark
        for name in self._stored.keys() - seen.keys():
            with s3_errors("Checkpoint upload"):
                self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)
            del self._stored[name]
        self._before = seen

    def _seen(self) -> dict[str, tuple[int, int]]:
        """Size and time of change (ns) of each file."""
        found = {}
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if path.is_file():
                        found[path.relative_to(self._folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return found


@contextlib.contextmanager
def s3_errors_but_missing(doing: str) -> Iterator[None]:
    """As s3_errors, but a file that is gone meanwhile stays a FileNotFoundError."""
    try:
        with s3_errors(doing):
            yield
    except Failed as failed:
        if isinstance(failed.__cause__, FileNotFoundError):
            raise failed.__cause__ from None
        raise


def files_of(hosts: list[Host], folder: str) -> dict[str, Path]:
    """All below *folder* of all hosts by its name there, folders too; of two with one name the first host's."""
    found: dict[str, Path] = {}
    for host in hosts:
        base = host.root / folder
        for path in sorted(base.rglob("*")):
            if path.is_symlink() or path.is_file() or path.is_dir():
                found.setdefault(path.relative_to(base).as_posix(), path)
    return dict(sorted(found.items()))


def upload_results(s3: Any, hosts: list[Host], request: Request, scratch: Path) -> None:
    """Store model/ and output/ of all hosts below the job's output path: nothing for what is empty. Raises Failed."""
    output = request["OutputDataConfig"]
    bucket, key = split_uri(f"{output['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output")
    extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": output["KmsKeyId"]} if output.get("KmsKeyId") else {}
    outputs = files_of(hosts, "output/data")
    for host in reversed(hosts):
        if (failure := host.root / "output/failure").is_file():
            outputs["failure"] = failure
    with s3_errors("Artifact upload"):
        for name, found in (("model", files_of(hosts, "model")), ("output", outputs)):
            if output.get("CompressionType") == "NONE":
                for place, path in found.items():
                    if path.is_file():
                        upload(s3, path, bucket, f"{key}/{name}/{place}", extra)
            elif any(path.is_file() for path in found.values()):
                archive = scratch / f"{name}.tar.gz"
                with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
                    for place, path in found.items():
                        tar.add(path, place, recursive=False, filter=by_root)
                upload(s3, archive, bucket, f"{key}/{archive.name}", extra)
                archive.unlink()


def by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """As a container leaves it, whoever rehearses."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def failure_reason(host: Host, code: int) -> str:
    """What a failed container says of itself, as DescribeTrainingJob shows it."""
    told = ""
    with contextlib.suppress(OSError), (host.root / "output/failure").open("rb") as file:
        told = file.read(4 * FAILURE_CHARACTERS).decode("utf-8", "replace")[:FAILURE_CHARACTERS]
    return f"AlgorithmError: {told}, exit code: {code}"
