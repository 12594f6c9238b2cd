"""The package: its digest, its archive, and what happens when files change or disks fill meanwhile."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import bootstrap, secrets
from orchestrator.errors import BadInput, OrchestrateError, StateError
from orchestrator.package import NOTED_BYTES, Manifest, PackedFile, build, hash_files, manifest_digest, scan, walk

REPOSITORY = Path(__file__).resolve().parents[1]
TOKEN = "hf" + "_" + "aB3dE5" * 6


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "lib").mkdir(parents=True)
    (folder / "train.py").write_text("print('hello')\n")
    (folder / "lib" / "a\nb.sh").write_text("echo\n")
    (folder / "lib" / "a\nb.sh").chmod(0o755)
    (folder / "lib" / "données.csv").write_bytes(bytes(range(256)) * 2000)
    (folder / "empty").touch()
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return tmp_path / "state" / "packages"


def in_python(code: str, *words: object, **options: object) -> subprocess.Popen[str]:
    """*code* in a Python of its own, which finds the project."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **options.pop("env", {})}  # type: ignore[dict-item]
    command = [sys.executable, "-c", code, *map(str, words)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **streams, **options)  # type: ignore[call-overload,no-any-return]


# ------------------------------------------------------------------------------------------------ the digest


def test_the_digest_of_a_small_tree_is_the_one_that_the_format_gives(tmp_path: Path) -> None:
    """Computed with sha256sum from the format's description; a change of this literal is a change of the format."""
    (tmp_path / "train.py").write_bytes(b"print(1)\n")
    (tmp_path / "é").mkdir()
    (tmp_path / "é" / "go.sh").write_bytes(b"")
    (tmp_path / "é" / "go.sh").chmod(0o755)
    lines = (
        b"orchestrate package 1\n"
        b"644 cc42155088fca5730758db72b2a5bca33112a941dfaa2d43098ec422ce4ea213 8:train.py\n"
        b"755 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 8:\xc3\xa9/go.sh\n"
    )
    assert (
        scan(tmp_path).digest
        == hashlib.sha256(lines).hexdigest()
        == "6c6e90b5204389876cfc6f8b9fee9a908b3fe16ede3d355bbec1980f376993f7"
    )


def test_files_are_sorted_by_the_bytes_of_their_paths() -> None:
    paths = ["Z", "a-b", "a/b", "a0", "z", "é", "\uffff", "\U0001f600"]
    files = [PackedFile(path, 0o644, 0, hashlib.sha256().hexdigest(), "") for path in paths]
    digest = hashlib.sha256(b"orchestrate package 1\n")
    for path in sorted(path.encode() for path in paths):
        digest.update(f"644 {hashlib.sha256().hexdigest()} {len(path)}:".encode() + path + b"\n")
    assert manifest_digest(reversed(files)) == digest.hexdigest()


def test_neither_times_nor_umask_nor_folder_nor_environment_change_the_digest(source: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from orchestrator.package import scan; print(scan(Path(sys.argv[1])).digest)"
    other = tmp_path / "another name"
    shutil.copytree(source, other, copy_function=shutil.copyfile)  # modes by umask, new times
    (other / "lib" / "a\nb.sh").chmod(0o700)
    (other / "train.py").chmod(0o660)
    os.utime(other / "train.py", (0, 0))
    elsewhere = {"TZ": "Pacific/Apia", "PYTHONHASHSEED": "7", "LC_ALL": "C", "HOME": str(tmp_path / "home")}
    first = in_python(code, source, env={"PYTHONHASHSEED": "1", "TZ": "UTC"})
    second = in_python(code, "another name", cwd=tmp_path, env=elsewhere, umask=0o077)
    assert first.communicate()[0] == second.communicate()[0] != ""
    assert (first.returncode, second.returncode) == (0, 0)


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
trees = st.dictionaries(
    names.map(str.casefold).filter(lambda name: name.isprintable() and not name.startswith(".")),
    st.tuples(st.binary(max_size=40), st.booleans()),
    min_size=1,
    max_size=5,
)


def manifest_of(files: dict[str, tuple[bytes, bool]], *, touched: float, mask: int) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        for name, (content, executable) in files.items():
            file = Path(folder, name)
            file.write_bytes(content)
            file.chmod((0o755 if executable else 0o644) & ~mask)
            os.utime(file, (touched, touched))
        return scan(Path(folder))


@settings(deadline=None, max_examples=60)
@given(
    files=trees, touched=st.integers(0, 2**31), mask=st.sampled_from([0, 0o022, 0o027, 0o077]), which=st.integers(0, 4)
)
def test_the_digest_tells_paths_modes_and_contents_apart_and_nothing_else(
    files: dict[str, tuple[bytes, bool]], touched: int, mask: int, which: int
) -> None:
    try:
        digest = manifest_of(files, touched=1e9, mask=0).digest
    except OrchestrateError:  # names that differ only in an accent's spelling, or `id_rsa`
        return
    assert manifest_of(files, touched=touched, mask=mask).digest == digest
    name = sorted(files)[which % len(files)]
    content, executable = files[name]
    others = {other: value for other, value in files.items() if other != name}
    changed = [
        {**files, name: (content + b"\0", executable)},
        {**files, name: (content, not executable)},
        {**others, f"{name}_": (content, executable)},
    ]
    if content:
        changed.append({**files, name: (bytes([content[0] ^ 1]) + content[1:], executable)})
    assert digest not in {manifest_of(tree, touched=1e9, mask=0).digest for tree in changed}


# ------------------------------------------------------------------------------------------------ the archive


def test_the_archive_holds_exactly_the_manifests_files(source: Path, packages: Path) -> None:
    manifest = scan(source)
    package = build(manifest, packages)
    assert package.path == packages / f"{manifest.digest}.tar.gz"
    with tarfile.open(package.path, "r|gz") as archive:
        for member, file in zip(archive, manifest.files, strict=True):
            contents = archive.extractfile(member)
            assert contents is not None
            assert (member.name, member.mode, member.size) == (file.path, file.mode, file.size_bytes)
            assert hashlib.sha256(contents.read()).hexdigest() == file.sha256
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert package.compressed_bytes == package.path.stat().st_size
    assert package.size_bytes == sum(file.size_bytes for file in manifest.files)


def test_what_bootstrap_unpacks_has_the_digest(source: Path, packages: Path, tmp_path: Path) -> None:
    long = source / ("d" * 120) / ("e" * 150) / "deep.txt"
    long.parent.mkdir(parents=True)
    long.write_bytes(b"\0" * 512)
    manifest = scan(source)
    assert bootstrap.unpack(build(manifest, packages).path, tmp_path / "code") == manifest.digest


def test_the_same_files_give_the_same_archive_byte_for_byte(source: Path, packages: Path, tmp_path: Path) -> None:
    first = build(scan(source), packages).path.read_bytes()
    shutil.copytree(source, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "train.py", (0, 0))
    assert build(scan(tmp_path / "copy"), tmp_path / "others").path.read_bytes() == first


def test_an_archive_that_is_there_is_not_made_again(source: Path, packages: Path) -> None:
    manifest = scan(source)
    first = build(manifest, packages)
    before = first.path.stat()
    second = build(scan(source), packages)
    assert (first.reused, second.reused) == (False, True)
    assert (before.st_ino, before.st_mtime_ns) == (second.path.stat().st_ino, second.path.stat().st_mtime_ns)
    assert second.compressed_bytes == first.compressed_bytes


def test_nobody_else_can_read_the_archive(source: Path, packages: Path) -> None:
    path = build(scan(source), packages).path
    assert path.stat().st_mode & 0o777 == 0o600
    assert packages.stat().st_mode & 0o777 == 0o700


def test_progress_ends_at_all_the_bytes(source: Path, packages: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = scan(source, progress=lambda *told: seen.append(told))
    build(manifest, packages, progress=lambda *told: seen.append(told))
    for stage in ("reading", "packing"):
        counts = [done for name, done, _ in seen if name == stage]
        assert counts == sorted(counts)
        assert counts[-1] == manifest.size_bytes
    assert {total for _, _, total in seen} == {manifest.size_bytes}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(source: Path, packages: Path) -> None:
    with (source / "data.bin").open("wb") as file:
        file.truncate(100_000_000)
    code = (
        "import re, sys; from pathlib import Path; from orchestrator.package import build, scan;"
        "build(scan(Path(sys.argv[1])), Path(sys.argv[2]));"
        # Not getrusage's: that remembers the process which this one was forked from.
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    process = in_python(code, source, packages)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert int(out) < 60_000


# ------------------------------------------------------------------------------------------------ secrets


def test_keys_are_refused_by_file_and_line_and_never_shown(source: Path) -> None:
    (source / "conf.py").write_text(f"import os\n\nTOKEN = '{TOKEN}'\nAGAIN = '{TOKEN}'\n")
    (source / "data.bin").write_bytes(b"\0" * 1_000_000 + b"\n" + TOKEN.encode() + b"\n")
    (source / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    with pytest.raises(OrchestrateError) as caught:
        scan(source)
    found = getattr(caught.value, "errors", ())
    assert [error.what for error in found] == [
        ".env looks like it holds environment variables, often with passwords",
        "conf.py:3 looks like a secret (Hugging Face token)",
        "data.bin:2 looks like a secret (Hugging Face token)",
    ]
    assert all(f"--allow-file {error.what.split(':')[0].split()[0]}" in error.hint for error in found)
    assert TOKEN not in str([(error.what, error.hint) for error in found])
    assert {error.exit_code for error in found} == {2}


def test_an_allowed_file_goes_along_and_only_that(source: Path) -> None:
    for name in ("conf.py", "more.py"):
        (source / name).write_text(f"TOKEN = '{TOKEN}'\n")
    with pytest.raises(BadInput, match=r"^more\.py:1 looks like a secret"):
        scan(source, allow_files=["./conf.py"])
    manifest = scan(source, allow_files=["conf.py", "more.py"])
    assert {file.path: file.rule for file in manifest.files}["conf.py"] == "--allow-file"


# ------------------------------------------------------------------------------------------------ changes meanwhile

CHANGES: dict[str, Callable[[Path], object]] = {
    "grew": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "shrank": lambda file: os.truncate(file, 5),
    "emptied": lambda file: os.truncate(file, 0),
    "rewritten in the same length": lambda file: file.write_bytes(file.read_bytes()[::-1]),
    "removed": lambda file: file.unlink(),
    "now a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "now a folder": lambda file: (file.unlink(), file.mkdir()),
    "now a link to another": lambda file: (file.unlink(), file.symlink_to(__file__)),
}
CHANGED = r"^(lib/données\.csv changed while it was packed|cannot read lib/données\.csv: Is a directory)$"


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest, source: Path) -> Callable[[], None]:
    file = source / "lib" / "données.csv"

    def change_keeping_times() -> None:
        before = file.stat()
        CHANGES[request.param](file)
        if file.is_file():
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change_keeping_times


def test_a_file_that_changes_between_reading_and_packing_is_noticed(
    source: Path, packages: Path, change: Callable[[], None]
) -> None:
    manifest = scan(source)
    change()
    with pytest.raises(BadInput, match=CHANGED):
        build(manifest, packages)
    assert list(packages.iterdir()) == []


def test_a_file_that_changes_while_it_is_packed_is_noticed(source: Path, packages: Path) -> None:
    manifest = scan(source)

    def grow(stage: str, done: int, total: int) -> None:
        with (source / "lib" / "données.csv").open("ab") as file:
            file.write(b"one more row\n")

    with pytest.raises(BadInput, match=CHANGED):
        build(manifest, packages, progress=grow)
    assert list(packages.iterdir()) == []


@pytest.mark.parametrize("name", ["grew", "shrank", "removed", "now a pipe", "now a link to another"])
def test_a_file_that_changes_between_listing_and_reading_is_noticed(source: Path, name: str) -> None:
    listing = walk(source)
    CHANGES[name](source / "lib" / "données.csv")
    with pytest.raises(BadInput, match=CHANGED):
        hash_files(listing)


def test_a_file_that_changes_while_it_is_read_is_noticed(source: Path) -> None:
    def overwrite(stage: str, done: int, total: int) -> None:
        with (source / "lib" / "données.csv").open("rb+") as file:
            file.write(b"other bytes, same length")
        os.utime(source / "lib" / "données.csv", ns=(0, done))

    with pytest.raises(BadInput, match=CHANGED):
        scan(source, progress=overwrite)


def test_a_touch_is_no_change(source: Path, packages: Path) -> None:
    manifest = scan(source)
    os.utime(source / "train.py", (0, 0))
    assert build(manifest, packages).digest == manifest.digest


# ------------------------------------------------------------------------------------------------ notes on large files


@pytest.fixture
def noted(source: Path, packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file whose hash has been noted, as if it had been written long ago (a ctime cannot be set)."""
    file = source / "data.bin"
    file.write_bytes(b"a" * NOTED_BYTES)
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.package._SETTLED_NS", -(10**12))
        build(scan(source), packages)
    return file


def hash_of(source: Path, packages: Path) -> str:
    files = scan(source, packages_dir=packages).files
    return next(file.sha256 for file in files if file.path == "data.bin")


def test_a_large_file_that_is_the_one_noted_is_not_read_again(source: Path, packages: Path, noted: Path) -> None:
    (notes,) = packages.glob("seen-*.json")
    honest = hash_of(source, packages)
    assert honest == hashlib.sha256(noted.read_bytes()).hexdigest()
    notes.write_text(notes.read_text().replace(honest, "f" * 64))
    assert hash_of(source, packages) == "f" * 64
    assert scan(source).digest != scan(source, packages_dir=packages).digest, "only who gives the folder asks the notes"
    with pytest.raises(BadInput, match=r"data\.bin changed while it was packed"):
        build(scan(source, packages_dir=packages), packages)
    assert hash_of(source, packages) == honest, "notes that turn out wrong are forgotten"


@pytest.mark.parametrize("how", ["in place", "by another file", "grew"])
def test_a_noted_file_that_changes_is_read_again_even_with_its_old_times(
    source: Path, packages: Path, noted: Path, how: str
) -> None:
    before, other = noted.stat(), noted.with_name("other")
    content = b"b" * (NOTED_BYTES + (how == "grew"))
    (other if how == "by another file" else noted).write_bytes(content)
    if how == "by another file":
        other.replace(noted)
    os.utime(noted, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_of(source, packages) == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_small_or_was_written_a_moment_ago_is_not_noted(source: Path, packages: Path) -> None:
    (source / "data.bin").write_bytes(b"a" * NOTED_BYTES)
    manifest = scan(source)
    build(manifest, packages)
    assert [file.stamp for file in manifest.files] == [()] * len(manifest.files)
    assert [path.name for path in packages.iterdir()] == [f"{manifest.digest}.tar.gz"]


def test_an_allowed_file_is_not_noted_as_free_of_keys(
    source: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.package._SETTLED_NS", -(10**12))
    (source / "data.bin").write_bytes(b"a " * NOTED_BYTES + TOKEN.encode())
    build(scan(source, allow_files=["data.bin"]), packages)
    with pytest.raises(BadInput, match="looks like a secret"):
        scan(source, packages_dir=packages)


@pytest.mark.parametrize("notes", ["", "{", "[]", "null", '{"00000000": []}', '{"FORMS": 7}', '{"FORMS": [1]}'])
def test_notes_that_cannot_be_understood_are_as_none(source: Path, packages: Path, noted: Path, notes: str) -> None:
    (file,) = packages.glob("seen-*.json")
    file.write_text(notes.replace("FORMS", secrets.FORMS))
    assert scan(source, packages_dir=packages) == scan(source)


# ------------------------------------------------------------------------------------------------ faults

BUILD = (
    "import sys; from pathlib import Path; from orchestrator import errors; from orchestrator.package import build, scan\n"
    "def progress(stage, done, total):\n"
    "    {progress}\n"
    "try: print(build(scan(Path(sys.argv[1])), Path(sys.argv[2]), progress=progress).reused)\n"
    "except errors.OrchestrateError as error: sys.exit(f'{{type(error).__name__}}: {{error.what}} / {{error.hint}}')\n"
)


def test_a_full_disk_is_told_and_leaves_nothing_behind(source: Path, packages: Path) -> None:
    (source / "noise.bin").write_bytes(os.urandom(500_000))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    process = in_python(limit + BUILD.format(progress="pass"), source, packages)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith(f"StateError: the disk that holds {packages} is full / free some space")
    assert list(packages.iterdir()) == []
    assert build(scan(source), packages).reused is False


def test_a_packages_folder_that_cannot_be_one_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"cannot use .*: Not a directory"):
        build(scan(source), tmp_path / "file" / "packages")


def test_what_a_killed_process_left_half_written_is_cleared_away(source: Path, packages: Path) -> None:
    kill = "import os, signal; done > 100_000 and os.kill(os.getpid(), signal.SIGKILL)"
    process = in_python(BUILD.format(progress=kill), source, packages)
    process.communicate()
    assert process.returncode == -9
    (left_over,) = packages.iterdir()
    package = build(scan(source), packages)
    assert list(packages.iterdir()) == [package.path]
    assert package.path != left_over
    with tarfile.open(package.path, "r|gz") as archive:
        assert len(list(archive)) == 4


def test_what_another_process_is_writing_is_left_alone(source: Path, packages: Path, tmp_path: Path) -> None:
    wait = "done > 100_000 and stage == 'packing' and (print('half', flush=True), sys.stdin.read())"
    other = in_python(BUILD.format(progress=wait), source, packages)
    assert other.stdout is not None
    assert other.stdout.readline() == "half\n"
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "train.py").touch()
    build(scan(tmp_path / "small"), packages)
    out, err = other.communicate("")
    assert (other.returncode, out.split()[-1]) == (0, "False"), err
    assert len(list(packages.iterdir())) == 2


def test_processes_that_make_the_same_package_at_once_all_get_it(source: Path, packages: Path) -> None:
    processes = [in_python(BUILD.format(progress="pass"), source, packages) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [""] * 4
    (path,) = packages.iterdir()
    assert path.name == f"{scan(source).digest}.tar.gz"


def test_a_gzip_of_any_size_is_whole(tmp_path: Path) -> None:
    """Sizes about the blocks that are read and those of a tar."""
    sizes = [0, 1, 511, 512, 513, 131_071, 131_072, 131_073, 262_144, 1_000_003]
    folder = tmp_path / "sizes"
    folder.mkdir()
    for size in sizes:
        (folder / str(size)).write_bytes(os.urandom(size))
    path = build(scan(folder), tmp_path / "packages").path
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
        for size in sizes:
            contents = archive.extractfile(str(size))
            assert contents is not None
            assert contents.read() == (folder / str(size)).read_bytes()
