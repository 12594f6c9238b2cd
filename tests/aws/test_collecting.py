"""What goes along to S3 is there when it is said to be; what comes back comes, but for what is told."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import unpack as unpacking
from orchestrator.aws import collecting
from orchestrator.aws.client import Aws
from orchestrator.aws.folders import survey
from orchestrator.aws.transfer import Bucket
from orchestrator.errors import BadInput, Conflict, OrchestrateError
from tests.aws.conftest import Calls
from tests.aws.test_transfer import store, stored

pytestmark = pytest.mark.slow

Send = Callable[[], list[str]]


@pytest.fixture
def prefix(data: Path) -> str:
    return f"data/{survey(data).digest}/"


@pytest.fixture
def send(bucket: Bucket, calls: Calls, data: Path, prefix: str, tmp_path: Path) -> Send:
    """Send the data folder; returns the keys that were put."""

    def sent() -> list[str]:
        before = len(calls.of("PutObject"))
        collecting.send_folder(bucket, data, prefix, tmp_path / "seen", None)
        return [call["Key"] for call in calls.of("PutObject")[before:]]

    return sent


def test_a_folder_is_sent_once_and_marked_last(send: Send, bucket: Bucket, data: Path, prefix: str) -> None:
    keys = {f"{prefix}{path}" for path, _, _ in survey(data).files}
    sent = send()
    assert set(sent[:-1]) == keys == {found.key for found in bucket.list(prefix)}
    assert sent[-1] == f"{prefix.rstrip('/')}.complete"
    assert send() == []


def test_a_folder_that_lies_there_whole_is_not_even_read(
    send: Send, data: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    monkeypatch.setattr(collecting.folders, "survey", lambda *_, **__: pytest.fail("it was read"))
    before = len(calls)
    send()
    assert [name for name, _ in calls[before:]] == ["GetObject", "ListObjectsV2"]


def test_data_that_was_removed_from_the_bucket_is_sent_again_whatever_the_mark_says(
    send: Send, aws: Aws, bucket: Bucket, prefix: str
) -> None:
    send()
    for gone in (["a/two"], ["a/b/one.npz", "empty"]):
        for path in gone:
            aws.client("s3").delete_object(Bucket=bucket.name, Key=f"{prefix}{path}")
        assert sorted(send()[:-1]) == [f"{prefix}{path}" for path in gone]
        assert send() == []


@pytest.mark.parametrize("content", [b"y" * 1000, b"longer than it was" * 1000])
def test_data_that_was_replaced_in_the_bucket_is_a_conflict(
    content: bytes, send: Send, aws: Aws, bucket: Bucket, prefix: str
) -> None:
    send()
    store(aws, bucket, f"{prefix}a/two", content)
    with pytest.raises(Conflict, match=r"a/two is not what belongs there"):
        send()


def test_data_of_others_among_ours_is_a_conflict(send: Send, aws: Aws, bucket: Bucket, prefix: str) -> None:
    send()
    store(aws, bucket, f"{prefix}a/three", b"not ours")
    with pytest.raises(Conflict, match="and that only"):
        send()
    assert stored(aws, bucket, f"{prefix}a/three") == b"not ours"


def test_a_folder_that_changed_while_it_was_sent_is_not_marked_complete(
    send: Send, bucket: Bucket, data: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder = bucket.put_folder

    def change(*words: Any, **more: Any) -> int:
        (data / "a/two").write_bytes(b"y" * 1000)
        return put_folder(*words, **more)

    monkeypatch.setattr(bucket, "put_folder", change)
    with pytest.raises(BadInput, match="two changed while it was sent"):
        send()
    assert bucket.read(f"{prefix.rstrip('/')}.complete") is None
    monkeypatch.undo()
    with pytest.raises(BadInput, match="has changed since the run was planned"):
        send()


# Back


RUN = "orchestrate/runs/orc-1/"
OUTSIDE = tarfile.TarInfo("../../escaped")


def packed(*members: tarfile.TarInfo | str) -> bytes:
    """A .tar.gz of these members; a name stands for a file that holds its own name."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            content = member.encode() if isinstance(member, str) else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(made.getvalue())


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


class Back:
    """A run whose objects are put with `leave` and brought to `out` with `fetch`."""

    def __init__(self, aws: Aws, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.run_dir, self.told = tmp_path / "out", tmp_path / "run", list[str]()
        self._aws, self._bucket = aws, bucket
        self.run_dir.mkdir()
        monkeypatch.setattr(collecting, "run_prefix", lambda run: RUN)

    def leave(self, name: str, content: bytes) -> None:
        store(self._aws, self._bucket, f"{RUN}{name}", content)

    def fetch(self) -> list[str]:
        run: Any = SimpleNamespace(run_dir=str(self.run_dir))
        made = collecting.fetched(self._bucket, run, self.out, checkpoints=True, progress=None, tell=self.told.append)
        assert sorted(made) == sorted(path for path in self.out.rglob("*") if path.is_file())
        return self.files()

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.rglob("*") if not path.is_dir())


@pytest.fixture
def back(aws: Aws, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Back:
    return Back(aws, bucket, tmp_path, monkeypatch)


def test_what_a_run_left_comes_back_unpacked(back: Back) -> None:
    back.leave("output/model.tar.gz", packed("m.txt"))
    back.leave("output/output.tar.gz", packed("rows.csv"))
    back.leave("checkpoints/step-1.pt", b"x")
    assert back.fetch() == ["checkpoints/step-1.pt", "model/m.txt", "output/data/rows.csv"]
    assert back.told == []
    assert list((back.run_dir / "download").iterdir()) == []


def test_links_in_a_model_keep_nothing_from_coming(back: Back) -> None:
    members = ("m.txt", link("latest", "m.txt"), link("best", "/opt/ml/model/m.txt"), link("hub", "/root/.cache/x"))
    back.leave("output/model.tar.gz", packed(*members))
    back.leave("output/output.tar.gz", packed("run-1/log", link("latest-run", "run-1")))
    assert back.fetch() == ["model/best", "model/latest", "model/m.txt", "output/data/run-1/log"]
    assert (back.out / "model/best").read_text() == (back.out / "model/latest").read_text() == "m.txt"
    [first, second] = back.told
    assert "'hub' (to '/root/.cache/x')" in first
    assert "'latest-run' (to 'run-1')" in second


def test_an_archive_that_cannot_be_unpacked_here_comes_whole(back: Back) -> None:
    model = packed("Model.pt", "model.pt")
    back.leave("output/model.tar.gz", model)
    back.leave("output/output.tar.gz", packed("rows.csv"))
    for _ in range(2):  # the second time it is there already
        assert back.fetch() == ["model/model.tar.gz", "output/data/rows.csv"]
        assert (back.out / "model/model.tar.gz").read_bytes() == model
        assert "are one file on some systems" in back.told[-1]
        assert f"tar -xzf {back.out / 'model/model.tar.gz'}" in back.told[-1]
        assert len(back.told[-1].splitlines()) == 1


def test_an_archive_of_too_many_files_comes_whole(back: Back, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = unpacking.unpack
    monkeypatch.setattr(collecting, "unpack", lambda *words, **more: unpack(*words, **more, most_files=3))
    back.leave("output/model.tar.gz", packed("1", "2", "3", "4"))
    assert back.fetch() == ["model/model.tar.gz"]
    assert "over 3 files" in back.told[0]


def test_a_refused_archive_keeps_no_other_from_coming_and_its_path_is_told(back: Back) -> None:
    back.leave("output/model.tar.gz", packed("good", OUTSIDE))
    back.leave("output/output.tar.gz", packed("rows.csv"))
    back.leave("checkpoints/a//b", b"x")
    back.leave("checkpoints/step-1.pt", b"x")
    with pytest.raises(OrchestrateError) as refused:
        back.fetch()
    assert back.files() == ["checkpoints/step-1.pt", "output/data/rows.csv"]
    assert "model.tar.gz" in refused.value.what
    assert "'checkpoints/a//b'" in refused.value.what
    kept = back.run_dir / "download/model.tar.gz"
    assert kept.exists()
    assert str(kept) in str(refused.value.errors[1].hint)  # type: ignore[attr-defined]
    assert not list(back.out.parent.rglob("escaped"))
