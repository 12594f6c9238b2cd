"""The extractor: files and folders inside one new folder, or nothing at all, whatever the archive."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest

from orchestrator import unpack as unpacking
from orchestrator.errors import BadInput, OrchestrateError
from orchestrator.unpack import NotUnpacked, unpack

Entry = tuple[str, bytes, dict[str, object]]


def tar_of(*entries: Entry, flavour: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar whose members are (name, content, fields of TarInfo)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=flavour) as tar:
        for name, content, fields in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def archive_of(tmp_path: Path, *entries: Entry, flavour: int = tarfile.PAX_FORMAT) -> Path:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(tar_of(*entries, flavour=flavour)))
    return path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_and_folders_are_unpacked_with_what_was_in_them(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path,
        ("./", b"", {"type": tarfile.DIRTYPE}),
        ("model.pt", b"weights" * 400_000, {}),
        ("./code/run.sh", b"#!/bin/sh\n", {"mode": 0o4777}),
        ("empty", b"", {"mode": 0o600}),
        ("kept", b"", {"type": tarfile.DIRTYPE, "mode": 0o000}),
        (f"{'long/' * 40}näme", b"deep", {}),
    )
    made = unpack(archive, tmp_path / "to" / "model")
    assert (tmp_path / "to/model/model.pt").read_bytes() == b"weights" * 400_000
    assert (tmp_path / "to/model" / f"{'long/' * 40}näme").read_bytes() == b"deep"
    modes = {
        name: stat.S_IMODE((tmp_path / "to/model" / name).stat().st_mode) for name in ("code/run.sh", "empty", "kept")
    }
    assert modes == {"code/run.sh": 0o755, "empty": 0o644, "kept": 0o755}
    assert sorted(made) == sorted((tmp_path / "to/model").rglob("*"))
    assert everything(tmp_path / "to") == ["model", *(f"model/{name}" for name in everything(tmp_path / "to/model"))]


def test_the_formats_that_tar_programs_write_are_all_read(tmp_path: Path) -> None:
    for flavour in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        name = f"{'a' * 90}/{'b' * 90}"
        unpack(archive_of(tmp_path, (name, b"x", {}), flavour=flavour), tmp_path / f"to{flavour}")
        assert (tmp_path / f"to{flavour}" / name).read_bytes() == b"x"


def test_an_archive_of_nothing_makes_an_empty_folder(tmp_path: Path) -> None:
    assert unpack(archive_of(tmp_path), tmp_path / "to") == []
    assert everything(tmp_path / "to") == []


LINK = {"type": tarfile.SYMTYPE, "linkname": "../../outside"}
HOSTILE: dict[str, list[Entry]] = {
    "a name that climbs out": [("../outside", b"x", {})],
    "a name that climbs out later": [("a/../../outside", b"x", {})],
    "an absolute name": [("/tmp/outside", b"x", {})],
    "an absolute name in an extended header": [("a", b"x", {"pax_headers": {"path": "/tmp/outside"}})],
    "a symbolic link and a file through it": [("link", b"", LINK), ("link/x", b"x", {})],
    "a file and a symbolic link of that name": [("link", b"x", {}), ("link", b"", LINK)],
    "a symbolic link and a file of that name": [("link", b"", LINK), ("link", b"x", {})],
    "a symbolic link that climbs out by its name": [("../outside", b"", {**LINK, "linkname": "fine"})],
    "a symbolic link with content": [("link", b"x" * 512, LINK)],
    "a hard link": [("link", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})],
    "a hard link to what is not in it": [("link", b"", {"type": tarfile.LNKTYPE, "linkname": "other"})],
    "a hard link that climbs out": [("link", b"", {"type": tarfile.LNKTYPE, "linkname": "../work/fine"})],
    "a device": [("null", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "a block device": [("disk", b"", {"type": tarfile.BLKTYPE})],
    "a named pipe": [("pipe", b"", {"type": tarfile.FIFOTYPE})],
    "a sparse file": [("sparse", b"x", {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.name": "sparse"}})],
    "an old sparse file": [("sparse", b"", {"type": tarfile.GNUTYPE_SPARSE})],
    "an unknown kind": [("what", b"", {"type": b"Z"})],
    "a file twice": [("a", b"1", {}), ("a", b"2", {})],
    "a file twice by another name": [("a", b"1", {}), ("./a", b"2", {})],
    "a file that is a folder too": [("a", b"1", {}), ("a/b", b"2", {})],
    "a folder that is a file too": [("a/b", b"2", {}), ("a", b"1", {})],
    "names alike but for case": [("Model.pt", b"1", {}), ("model.pt", b"2", {})],
    "folders alike but for case": [("A/x", b"1", {}), ("a/y", b"2", {})],
    "names alike but for how an accent is written": [("é", b"1", {}), ("e\u0301", b"2", {})],
    "a name with a backslash": [("..\\outside", b"x", {})],
    "a name with a drive": [("C:/outside", b"x", {})],
    "a name with a NUL": [("a", b"x", {"pax_headers": {"path": "a\0b"}})],
    "an empty name": [("", b"x", {})],
    "a file named dot": [(".", b"x", {})],
    "a name with two slashes": [("a//b", b"x", {})],
    "a name of 256 bytes": [("a" * 256, b"x", {})],
    "a path of 3,000 bytes": [("abcd/" * 600 + "a", b"x", {})],
    "a negative size": [("a", b"x", {"pax_headers": {"size": "-1"}})],
    "a size beyond the end": [("a", b"x", {"pax_headers": {"size": "99999"}})],
    "a huge extended header": [("a", b"x", {"pax_headers": {"comment": "x" * 70_000}})],
    "a folder with content": [("a", b"x" * 512, {"type": tarfile.DIRTYPE})],
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_a_plain_file_or_folder_inside_is_refused_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    archive = archive_of(tmp_path, ("fine", b"fine", {}), *HOSTILE[what])
    with pytest.raises(BadInput) as refused:
        unpack(archive, work / "to")
    assert "\n" not in refused.value.what
    assert refused.value.hint
    assert everything(tmp_path) == ["model.tar.gz", "work"]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    return name, b"", {"type": kind, "linkname": target}


@pytest.mark.parametrize("flavour", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_link_to_a_file_in_the_archive_becomes_a_copy_of_it(flavour: int, tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path,
        link("latest", "epochs/./2.pt"),
        link("epochs/best", "../latest"),
        link("epochs/same", "1.pt"),
        link("newest", "epochs-of-today/2.pt"),
        link("epochs-of-today", "epochs"),
        link("absolute", "/opt/ml/model/epochs/1.pt"),
        ("epochs/1.pt", b"one", {"mode": 0o755}),
        ("epochs/2.pt", b"two", {}),
        link("hard", "epochs/1.pt", tarfile.LNKTYPE),
        link("hard-to-a-link", "latest", tarfile.LNKTYPE),
        flavour=flavour,
    )
    told: list[str] = []
    made = unpack(archive, tmp_path / "to", made_of="/opt/ml/model", tell=told.append)
    expected = {"latest": b"two", "epochs/best": b"two", "epochs/same": b"one", "newest": b"two", "absolute": b"one"}
    expected |= {"hard": b"one", "hard-to-a-link": b"two"}
    assert {name: (tmp_path / "to" / name).read_bytes() for name in expected} == expected
    assert sorted(made) == sorted((tmp_path / "to").rglob("*"))
    assert not [path for path in made if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)]
    assert stat.S_IMODE((tmp_path / "to/hard").stat().st_mode) == 0o755
    assert len(told) == 1
    assert "'epochs-of-today' (to 'epochs')" in told[0]


def test_a_link_with_a_long_target_is_read_in_the_format_of_gnu(tmp_path: Path) -> None:
    name = f"{'a' * 90}/{'b' * 90}"
    archive = archive_of(tmp_path, (name, b"x", {}), link("link", name), flavour=tarfile.GNU_FORMAT)
    unpack(archive, tmp_path / "to")
    assert (tmp_path / "to/link").read_bytes() == b"x"


def test_links_that_lead_to_no_file_inside_are_left_out_and_named_in_one_line(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    archive = archive_of(
        tmp_path,
        ("run-1/log", b"line", {}),
        link("run-1/up", "../../outside"),
        link("latest-run", "run-1"),
        link("absolute", str(outside)),
        link("nowhere\x1b[2J", "gone"),
        link("round", "about"),
        link("about", "round"),
        link("through", "run-1/up/x"),
    )
    told: list[str] = []
    unpack(archive, tmp_path / "to", tell=told.append)
    assert everything(tmp_path / "to") == ["run-1", "run-1/log"]
    [line] = told
    assert line.isprintable()
    assert line.startswith("'model.tar.gz': links that lead to no file in it were left out: 'run-1/up' (to '../../outs")
    assert "'latest-run' (to 'run-1')" in line
    assert line.endswith(", 2 more")


def test_copies_for_links_count_as_bytes(tmp_path: Path) -> None:
    links = (link(str(number), "zeros") for number in range(20))
    with pytest.raises(NotUnpacked, match="over 2,000,000 bytes"):
        unpack(archive_of(tmp_path, ("zeros", bytes(500_000), {}), *links), tmp_path / "to", most_bytes=2_000_000)
    assert everything(tmp_path) == ["model.tar.gz"]


FAIR = ["names alike but for case", "a named pipe", "a sparse file", "a device"]


@pytest.mark.parametrize("what", FAIR)
def test_what_linux_may_well_write_is_told_from_what_means_harm(what: str, tmp_path: Path) -> None:
    with pytest.raises(NotUnpacked) as refused:
        unpack(archive_of(tmp_path, *HOSTILE[what]), tmp_path / "to")
    assert str(tmp_path / "model.tar.gz") in str(refused.value.hint)
    with pytest.raises(BadInput) as hostile:
        unpack(archive_of(tmp_path, *HOSTILE["a name that climbs out"]), tmp_path / "to")
    assert not isinstance(hostile.value, NotUnpacked)


def test_a_global_header_that_renames_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "../outside"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    archive.write_bytes(gzip.compress(made.getvalue()))
    with pytest.raises(BadInput, match="global header"):
        unpack(archive, tmp_path / "to")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, *((f"{number}", b"", {}) for number in range(11)))
    assert len(unpack(archive, tmp_path / "all", most_files=11)) == 11
    with pytest.raises(BadInput, match="over 10 files"):
        unpack(archive, tmp_path / "to", most_files=10)


def test_folders_that_a_path_implies_count_too(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="over 10 files"):
        unpack(archive_of(tmp_path, ("a/" * 20 + "b", b"", {}), ("c", b"", {})), tmp_path / "to", most_files=10)


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, ("zeros", bytes(3_000_000), {}))
    unpack(archive, tmp_path / "all")
    with pytest.raises(BadInput, match="over 2,000,000 bytes"):
        unpack(archive, tmp_path / "to", most_bytes=2_000_000)


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MOST_BYTES_ANYWAY", 1 << 20)
    archive = archive_of(tmp_path, ("zeros", bytes(8 << 20), {}))
    unpack(archive, tmp_path / "all", most_ratio=2000)
    with pytest.raises(BadInput, match="unpacks to over"):
        unpack(archive, tmp_path / "to", most_ratio=200)
    assert not (tmp_path / "to").exists()


def test_zeros_after_the_end_count_as_well(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(gzip.compress(tar_of(("a", b"x", {})) + bytes(5_000_000)))
    with pytest.raises(BadInput, match="unpacks to over"):
        unpack(archive, tmp_path / "to", most_bytes=1_000_000)


def test_a_truncated_or_damaged_archive_is_refused_wherever_it_breaks_off(tmp_path: Path) -> None:
    whole = gzip.compress(tar_of(("a", os.urandom(3000), {}), ("b/c", b"x", {})))
    archive = tmp_path / "model.tar.gz"
    for length in range(0, len(whole) - 1, 37):
        archive.write_bytes(whole[:length])
        with pytest.raises(BadInput):
            unpack(archive, tmp_path / "to")
    archive.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # gzip's own checksum
    with pytest.raises(BadInput, match="not a whole"):
        unpack(archive, tmp_path / "to")
    assert everything(tmp_path) == ["model.tar.gz"]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to/mine").write_text("mine")
    with pytest.raises(BadInput, match="cannot be unpacked"):
        unpack(archive_of(tmp_path, ("a", b"x", {})), tmp_path / "to")
    assert everything(tmp_path) == ["model.tar.gz", "to", "to/mine"]


def test_a_link_where_the_folder_should_be_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to").symlink_to("elsewhere")
    with pytest.raises(BadInput):
        unpack(archive_of(tmp_path, ("a", b"x", {})), tmp_path / "to")
    assert everything(tmp_path) == ["elsewhere", "model.tar.gz", "to"]


def test_no_archive_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be unpacked"):
        unpack(tmp_path / "none.tar.gz", tmp_path / "to")


@pytest.mark.slow
def test_two_thousand_mutated_archives_do_no_harm(memory_folder: Path) -> None:
    fuzz(memory_folder, seed=1, count=2_000)


@pytest.mark.slow
def test_twenty_thousand_mutated_archives_do_no_harm(memory_folder: Path) -> None:
    fuzz(memory_folder, seed=2, count=20_000)


def fuzz(tmp_path: Path, seed: int, count: int) -> None:
    """Unpack *count* archives, each a mixture of members with some bytes changed; nothing but OrchestrateError comes out."""
    rng = random.Random(seed)
    work, archive = tmp_path / "work", tmp_path / "fuzz.tar.gz"
    work.mkdir()
    unpacked = refused = 0
    for _ in range(count):
        archive.write_bytes(mutated(rng))
        try:
            made = unpack(archive, work / "to", most_bytes=10_000_000)
        except OrchestrateError:
            refused += 1
            assert list(work.iterdir()) == []
        else:
            unpacked += 1
            assert sorted(made) == sorted((work / "to").rglob("*"))
            for path in made:
                status = path.lstat()
                assert stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
                assert stat.S_IMODE(status.st_mode) in (0o644, 0o755)
            (work / "to").rename(tmp_path / "done")
            remove(tmp_path / "done")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["fuzz.tar.gz", "work"]
    assert unpacked > count // 20  # it was no test, were they all refused, or none
    assert refused > count // 20


def remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


NAMES = ["a", "a/b", "b/c/d", "./e", "f" * 60 + "/" + "f" * 60, "ä", "../x", "/x", "a\\b", "A", "g/", ".", "h/../i"]
KINDS = [tarfile.REGTYPE] * 12 + [tarfile.DIRTYPE] * 3 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
KINDS += [tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME]


def mutated(rng: random.Random) -> bytes:
    entries: list[Entry] = []
    for number in range(rng.randint(0, 4)):
        name = rng.choice(NAMES) if rng.random() < 0.4 else f"{number}/{rng.choice(NAMES[:6])}"
        fields: dict[str, object] = {"type": rng.choice(KINDS), "mode": rng.choice([0o644, 0o755, 0o7777, 0])}
        if fields["type"] in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            fields["linkname"] = rng.choice(["a", f"{rng.randrange(4)}/a", "b/c", "../../x", "/etc/passwd", "b" * 90])
        if rng.random() < 0.1:
            key = rng.choice(["path", "size", "GNU.sparse.major", "comment", "linkpath"])
            fields["pax_headers"] = {key: rng.choice(["../x", "7", "-7", "a", "9" * 30, "é"])}
        content = b"" if fields["type"] == tarfile.DIRTYPE else rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))
        entries.append((name, content, fields))
    data = bytearray(
        tar_of(*entries, flavour=rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    )
    while rng.random() < 0.4:
        start = rng.randrange(len(data))
        data[start] = rng.randrange(256)
        if rng.random() < 0.7:
            mend(data, start)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    packed = bytearray(gzip.compress(bytes(data), 1))
    if rng.random() < 0.1:
        packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
    return bytes(packed)


def mend(data: bytearray, position: int) -> None:
    """Make the checksum of the header block at *position* right, so that the change in it is looked at."""
    start = position // 512 * 512
    block = data[start : start + 512]
    if len(block) == 512:
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
