"""What goes along to S3 and what comes back: data folders, checkpoints, the model and the output of a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator import state
from orchestrator.aws import folders
from orchestrator.aws.place import PREFIX
from orchestrator.aws.transfer import Bucket
from orchestrator.backends import Artifact, Progress, kept_files
from orchestrator.errors import BadInput
from orchestrator.runs import Run
from orchestrator.unpack import unpack

# The archives that SageMaker makes, and where a local run keeps what is in them.
ARCHIVES = {"output/model.tar.gz": "model", "output/output.tar.gz": "output/data"}
COLLECTED = "collected"


def send_folder(bucket: Bucket, folder: Path, prefix: str, seen_dir: Path, progress: Progress | None) -> None:
    """Upload *folder* to *prefix*, once: where all of it lies there already nothing is read or sent."""
    mark = f"{prefix.rstrip('/')}.complete"
    if any(found.key == mark for found in bucket.list(mark)):
        return
    content = folders.survey(folder, seen_file=seen_file(folder, seen_dir), progress=progress)
    name = prefix.rstrip("/").rpartition("/")[2]
    if len(name) == 64 and name != content.digest:
        raise BadInput(f"{folder} has changed since the run was planned", hint="submit it again")
    bucket.put_folder(content, folder, prefix, progress=progress)


def seen_file(folder: Path, seen_dir: Path) -> Path:
    """Where the hashes of a data folder's large files are remembered."""
    import hashlib

    return seen_dir / f"seen-data-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"


def send_checkpoints(bucket: Bucket, source: str, prefix: str, progress: Progress | None) -> None:
    """Put the checkpoints of an earlier run, in S3 or in a folder here, where the new job begins with them."""
    if source.startswith("s3://"):
        name, _, key = source.removeprefix("s3://").partition("/")
        if name != bucket.name:
            raise BadInput(f"the checkpoints are in bucket {name}", hint=f"--bucket {name}")
        bucket.copy_prefix(key, prefix)
        return
    for path in sorted(Path(source).rglob("*")):
        if path.is_file() and not path.is_symlink():
            bucket.put(path, f"{prefix}{path.relative_to(source).as_posix()}", progress=progress)


def run_prefix(run: Run) -> str:
    return f"{PREFIX}/runs/{run.remote_id}/"


def listed(bucket: Bucket, run: Run) -> list[Artifact]:
    """The run's objects: archives, checkpoints, TensorBoard events; not the job file that we put there."""
    prefix = run_prefix(run)
    return [
        Artifact(found.key.removeprefix(prefix), found.size, f"s3://{bucket.name}/{found.key}")
        for found in bucket.list(prefix)
        if not found.key.startswith(f"{prefix}job/")
    ]


def fetched(bucket: Bucket, run: Run, folder: Path, *, checkpoints: bool, progress: Progress | None) -> list[Path]:
    """Download, verify and unpack. What is half there from an earlier try is gone on with."""
    prefix = run_prefix(run)
    downloads = state.make_private(Path(run.run_dir) / "download")
    made: list[Path] = []
    for found in list(bucket.list(prefix)):
        name = found.key.removeprefix(prefix)
        if name in ARCHIVES:
            archive = bucket.fetch(found.key, downloads / Path(name).name, progress=progress)
            made += _unpacked(archive, folder / ARCHIVES[name])
            archive.unlink()
        elif name.startswith("output/") or (checkpoints and name.startswith("checkpoints/")):
            target = folder / _inside(name.removeprefix("output/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            made.append(bucket.fetch(found.key, target, progress=progress))
    return made


def _inside(name: str) -> Path:
    """An object's key as a path beneath a folder; a key can be anything."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise BadInput(f"the object {name!r} has no name that a file can have", hint="fetch it with the AWS CLI")
    return Path(*parts)


def _unpacked(archive: Path, target: Path) -> list[Path]:
    """Unpack beside and move in, so that *target* never holds half a file; what is there is replaced file by file."""
    beside = target.with_name(f".{target.name}.unpacked")
    shutil.rmtree(beside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.relative_to(beside) for path in unpack(archive, beside) if path.is_file()]
    made = []
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        made.append((beside / path).replace(target / path))
    shutil.rmtree(beside, ignore_errors=True)
    return made


def keep(run: Run, made: list[Path]) -> None:
    """Remember that all that the run left lies in its own folder here."""
    state.write_whole(Path(run.run_dir) / COLLECTED, f"{len(made)}\n".encode())


def root_of(run: Run) -> Path:
    return Path(run.run_dir) / "root"


def collected(run: Run) -> list[Artifact]:
    """The run's files in its own folder here, if they were brought there."""
    if not (Path(run.run_dir) / COLLECTED).exists():
        return []
    return list(_here(run))


def _here(run: Run) -> Iterator[Artifact]:
    yield from kept_files(root_of(run))
