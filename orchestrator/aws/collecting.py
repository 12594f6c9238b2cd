"""What goes along to S3 and what comes back: data folders, checkpoints, the model and the output of a run."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator import crashpoints, state
from orchestrator.aws import folders
from orchestrator.aws.place import PREFIX
from orchestrator.aws.transfer import Bucket
from orchestrator.backends import Artifact, Progress, kept_files
from orchestrator.errors import BadInput, Conflict, OrchestrateError, raise_all
from orchestrator.runs import Run
from orchestrator.unpack import NotUnpacked, unpack

# The archives that SageMaker makes, where a local run keeps what is in them, and what they are made of in the container.
ARCHIVES = {
    "output/model.tar.gz": ("model", "/opt/ml/model"),
    "output/output.tar.gz": ("output/data", "/opt/ml/output/data"),
}
COLLECTED = "collected"
Tell = Callable[[str], None]


def say(line: str) -> None:
    print(f"[orchestrate] {line}", file=sys.stderr, flush=True)


def send_folder(bucket: Bucket, folder: Path, prefix: str, seen_dir: Path, progress: Progress | None) -> None:
    """Upload *folder* to *prefix*, once: where all of it still lies there nothing is read or sent.

    A mark beside it tells what lay there when all of it did. It is held against what does now: a rule of the bucket's or
    somebody's hand may have removed objects since. Raises BadInput where the folder is not what *prefix* is named for,
    Conflict where something else lies there.
    """
    prefix = f"{prefix.rstrip('/')}/"
    mark = f"{prefix.rstrip('/')}.complete"
    if bucket.read(mark) == _listing(bucket, prefix)[1]:
        return
    content = folders.survey(folder, seen_file=seen_file(folder, seen_dir), progress=progress)
    name = prefix.rstrip("/").rpartition("/")[2]
    if len(name) == 64 and name != content.digest:
        raise BadInput(f"{folder} has changed since the run was planned", hint="submit it again")
    bucket.put_folder(content, folder, prefix, progress=progress)
    there, words = _listing(bucket, prefix)
    if there != {path: size_bytes for path, size_bytes, _ in content.files}:
        what = f"s3://{bucket.name}/{prefix} does not hold what {folder} does, and that only"
        raise Conflict(what, hint=f"see what else is written there: aws s3 ls --recursive s3://{bucket.name}/{prefix}")
    bucket.put(words, mark, always=True)
    crashpoints.reached("folder complete")


def _listing(bucket: Bucket, prefix: str) -> tuple[dict[str, int], bytes]:
    """What lies below *prefix*: the sizes by path, and the mark that says so, of ETags too."""
    sizes, hashed = dict[str, int](), hashlib.sha256()
    for found in bucket.list(prefix):
        path = found.key.removeprefix(prefix)
        sizes[path] = found.size
        hashed.update(f"{found.etag} {found.size} {len(path)}:{path}\n".encode())
    words = {"files": len(sizes), "size_bytes": sum(sizes.values()), "listing": hashed.hexdigest()}
    return sizes, json.dumps(words).encode()


def seen_file(folder: Path, seen_dir: Path) -> Path:
    """Where the hashes of a data folder's large files are remembered."""
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


def fetched(
    bucket: Bucket, run: Run, folder: Path, *, checkpoints: bool, progress: Progress | None, tell: Tell = say
) -> list[Path]:
    """Download, verify and unpack. What is half there from an earlier try is gone on with.

    An archive that Linux may well have written and that is not unpacked here is put into *folder* whole, and told. What is
    refused keeps nothing else from coming: it is raised at the end, and its archive stays where it was downloaded to.
    """
    prefix = run_prefix(run)
    downloads = state.make_private(Path(run.run_dir) / "download")
    made: list[Path] = []
    problems: list[OrchestrateError] = []
    for found in list(bucket.list(prefix)):
        name = found.key.removeprefix(prefix)
        if name in ARCHIVES:
            archive = bucket.fetch(found.key, downloads / Path(name).name, progress=progress)
            place, made_of = ARCHIVES[name]
            try:
                made += _unpacked(archive, folder / place, made_of, tell)
            except NotUnpacked as error:
                made.append(_moved(archive, folder / place))
                tell(f"{error.what}; it lies whole in {made[-1]}: tar -xzf {shlex.quote(str(made[-1]))}")
            except BadInput as error:
                problems.append(error)
            else:
                archive.unlink()
        elif name.startswith("output/") or (checkpoints and name.startswith("checkpoints/")):
            try:
                target = folder / _inside(name.removeprefix("output/"))
            except BadInput as error:
                problems.append(error)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            made.append(bucket.fetch(found.key, target, progress=progress))
    raise_all(problems)
    return made


def _inside(name: str) -> Path:
    """An object's key as a path beneath a folder; a key can be anything."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise BadInput(f"the object {name!r} has no name that a file can have", hint="fetch it with the AWS CLI")
    return Path(*parts)


def _unpacked(archive: Path, target: Path, made_of: str, tell: Tell) -> list[Path]:
    """Unpack beside and move in, so that *target* never holds half a file; what is there is replaced file by file."""
    beside = target.with_name(f".{target.name}.unpacked")
    shutil.rmtree(beside, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    unpacked = unpack(archive, beside, made_of=made_of, tell=tell)
    paths = [path.relative_to(beside) for path in unpacked if path.is_file()]
    made = []
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        made.append((beside / path).replace(target / path))
    shutil.rmtree(beside, ignore_errors=True)
    return made


def _moved(archive: Path, folder: Path) -> Path:
    """Move *archive*, maybe to another disk, into *folder*, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{archive.name}.part"
    try:
        shutil.move(archive, beside)
        return beside.replace(folder / archive.name)
    except OSError as error:
        what = f"cannot write {folder / archive.name}: {error.strerror or error}"
        raise BadInput(what, hint="free some space, or name another folder") from error


def keep(run: Run, made: list[Path]) -> None:
    """Remember that all that the run left lies in its own folder here."""
    state.write_whole(Path(run.run_dir) / COLLECTED, f"{len(made)}\n".encode())


def root_of(run: Run) -> Path:
    return Path(run.run_dir) / "root"


def collected(run: Run) -> list[Artifact] | None:
    """The run's files in its own folder here; None where they were not brought there."""
    if not (Path(run.run_dir) / COLLECTED).exists():
        return None
    return list(_here(run))


def _here(run: Run) -> Iterator[Artifact]:
    yield from kept_files(root_of(run))
