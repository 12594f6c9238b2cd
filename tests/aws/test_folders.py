"""A data folder's content: what counts, what is refused, what need not be read again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from orchestrator.aws import folders
from orchestrator.aws.folders import survey
from orchestrator.errors import BadInput, OrchestrateError


def test_the_digest_of_a_folder_is_that_of_its_paths_sizes_and_contents(tmp_path: Path, data: Path) -> None:
    content = survey(data)
    assert [path for path, _, _ in content.files] == [".hidden", "a/b/one.npz", "a/two", "empty", "ümläut"]
    lines = [
        f"{hashlib.sha256((data / path).read_bytes()).hexdigest()} {size} {len(path.encode())}:{path}\n"
        for path, size, _ in content.files
    ]
    assert content.digest == hashlib.sha256("".join(["orchestrate folder 1\n", *lines]).encode()).hexdigest()
    (data / "a/two").touch()
    (data / "an empty folder").mkdir()
    assert survey(data) == content
    (data / "a/two").write_bytes(b"y" * 1000)
    assert survey(data).digest != content.digest


def test_a_link_inside_is_the_file_that_it_leads_to(data: Path) -> None:
    (data / "link").symlink_to("a/two")
    (data / "folder").symlink_to("a/b")
    found = {path: sha256 for path, _, sha256 in survey(data).files}
    assert found["link"] == found["a/two"]
    assert found["folder/one.npz"] == found["a/b/one.npz"]


def test_what_cannot_be_sent_is_refused_in_one_line(tmp_path: Path, data: Path) -> None:
    def outside() -> None:
        (data / "bad").symlink_to(tmp_path)

    def loop() -> None:
        (data / "bad").symlink_to(".")

    def itself() -> None:
        (data / "bad").symlink_to("bad")

    def nowhere() -> None:
        (data / "bad").symlink_to("a/none")

    def pipe() -> None:
        os.mkfifo(data / "bad")

    for make in (outside, loop, itself, nowhere, pipe):
        make()
        with pytest.raises(OrchestrateError, match="/data/bad ") as refused:
            survey(data)
        assert "\n" not in refused.value.what
        (data / "bad").unlink()
    for folder in (data / "none", data / "empty", tmp_path / "hollow"):
        (tmp_path / "hollow").mkdir(exist_ok=True)
        with pytest.raises(BadInput):
            survey(folder)


def test_a_file_that_changes_while_it_is_read_is_noticed(data: Path) -> None:
    def write(words: str, done: int, total: int) -> None:
        with (data / "ümläut").open("ab") as file:
            file.write(b"more")

    with pytest.raises(BadInput, match="changed while it was read"):
        survey(data, progress=write)


def test_a_large_file_that_stayed_as_it_is_is_not_read_again(
    data: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_SETTLED_NS", -(10**12))  # what was written just now counts as settled
    large, seen = data / "large", home / "packages" / "seen-data.json"
    large.write_bytes(bytes(2 << 20))
    content = survey(data, seen_file=seen)
    read: list[str] = []
    blocks = folders._blocks
    monkeypatch.setattr(folders, "_blocks", lambda folder, met: read.append(met.path) or blocks(folder, met))
    assert survey(data, seen_file=seen) == content
    assert "large" not in read
    assert "a/two" in read
    large.write_bytes(bytes(2 << 20 | 1))
    assert survey(data, seen_file=seen) != content
    assert "large" in read
    seen.write_text("not ours")
    assert survey(data, seen_file=seen).digest == survey(data).digest
