"""Which lines of which ignore file decide, held against git itself."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import ignore
from orchestrator.errors import BadInput

NAMES = "a b foo bar data foo.py x.log logs !x #y é à [z] a\\b A - build caf ..a"
PATTERNS = r"""
    a b foo *.py *.log * ? ** data f* [ab] [!a] [a-c]* \!x \#y é à x.??? b? foo* *o* **foo a**b []a] [^b] \a a\\b {a,b}
    [z-a] [A-Z] [[]z] [[:alpha:]] [[:digit:]]* ..a ?\? *[!.]* fo\o
"""
PARTS = [*NAMES.split(), "a b", "t ", "n\nl", "foo\n", "tab\t"]
PATTERN_PARTS = [*PATTERNS.split(), "t\\ ", "tab\t"]


def write(folder: Path, lines: bytes | str, name: str = ".gitignore") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(lines.encode() if isinstance(lines, str) else lines)


def left_out_by(source: Path, path: str) -> str | None:
    """The line that leaves *path* out, asked level by level as the walk does."""
    rules, parts = ignore.rules_of(source), path.split("/")
    for depth in range(1, len(parts) + 1):
        part = "/".join(parts[:depth])
        is_dir = (source / part).is_dir() or depth < len(parts)
        line = rules.verdict(part, is_dir=is_dir)
        if line and not line.brings_back:
            return line.label
        if is_dir:
            rules = rules.inside(str(source / part), part)
    return None


def random_line(chance: random.Random) -> str:
    line = "/".join(chance.choice(PATTERN_PARTS) for _ in range(chance.choice([1, 1, 1, 2, 2, 3])))
    line = ("/" if chance.random() < 0.2 else "") + line + ("/" if chance.random() < 0.25 else "")
    return ("!" if chance.random() < 0.25 else "") + line + chance.choice(["", "", "", "", "", "  ", "\r"])


def random_tree(folder: Path, chance: random.Random) -> list[Path]:
    folders, paths = [folder], []
    for _ in range(25):
        path = chance.choice(folders) / chance.choice(PARTS)
        if path.exists() or len(path.relative_to(folder).parts) > 4:
            continue
        if chance.random() < 0.4:
            path.mkdir()
            folders.append(path)
        else:
            path.touch()
        paths.append(path)
    for ruled in (folder, *chance.sample(folders, min(2, len(folders)))):
        write(ruled, "\n".join(random_line(chance) for _ in range(chance.randint(1, 5))))
    return paths


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git to compare with")
@pytest.mark.parametrize("seed", range(4))
def test_a_path_is_left_out_where_git_ignores_it(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", tmp_path], check=True, env=environment)
    trees = [tmp_path / f"tree{number}" for number in range(30)]
    for tree in trees:
        tree.mkdir()
    paths = {tree: random_tree(tree, chance) for tree in trees}
    ours = {
        path.relative_to(tmp_path).as_posix()
        for tree in trees
        for path in paths[tree]
        if left_out_by(tree, path.relative_to(tree).as_posix())
    }
    asked = "\0".join(path.relative_to(tmp_path).as_posix() for tree in trees for path in paths[tree])
    command = ["git", "check-ignore", "--no-index", "-z", "--stdin"]
    answer = subprocess.run(command, input=asked.encode(), stdout=subprocess.PIPE, cwd=tmp_path, env=environment).stdout
    gits = set(answer.decode().split("\0")) - {""}
    assert len(gits) > 50
    assert ours == gits


def test_the_line_that_decides_is_named(tmp_path: Path) -> None:
    write(tmp_path, "# logs\n\n*.log\n!keep.log\n/é?.txt  \n")
    write(tmp_path / "src", "*.tmp\n")
    assert left_out_by(tmp_path, "src/deep/a.log") == ".gitignore:3: *.log"
    assert left_out_by(tmp_path, "src/a.tmp") == "src/.gitignore:1: *.tmp"
    assert left_out_by(tmp_path, "é1.txt") == ".gitignore:5: /é?.txt"
    assert left_out_by(tmp_path, "keep.log") is None


def test_our_own_file_wins_over_gits_even_from_a_higher_folder(tmp_path: Path) -> None:
    write(tmp_path, "data/\n*.bin\n")
    write(tmp_path / "data", "*.csv\n")
    write(tmp_path, "!data/\n!*.csv\n", ".orchestrateignore")
    assert left_out_by(tmp_path, "data/train.csv") is None
    assert left_out_by(tmp_path, "data/train.txt") is None


def test_a_folder_brought_back_does_not_bring_back_what_other_lines_leave_out_of_it(tmp_path: Path) -> None:
    write(tmp_path, "/data/\n*.bin\n")
    write(tmp_path, "!/data/\n", ".orchestrateignore")
    assert left_out_by(tmp_path, "data/train.csv") is None
    assert left_out_by(tmp_path, "data/train.bin") == ".gitignore:2: *.bin"


def test_nothing_comes_back_out_of_a_folder_that_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "data/\n!data/keep.csv\n")
    assert left_out_by(tmp_path, "data/keep.csv") == ".gitignore:1: data/"


def test_a_repositorys_rules_hold_in_a_folder_inside_it(tmp_path: Path) -> None:
    source = tmp_path / "training" / "mnist"
    source.mkdir(parents=True)
    write(tmp_path, "*.pt\n/training/mnist/raw\n/top\nmnist/\n")
    assert left_out_by(source, "model.pt") is None, "outside a repository, no folder above has a say"
    (tmp_path / ".git").mkdir()
    assert left_out_by(source, "model.pt") == "../../.gitignore:1: *.pt"
    assert left_out_by(source, "raw") == "../../.gitignore:2: /training/mnist/raw"
    assert left_out_by(source, "top") is None
    assert left_out_by(source, "train.py") is None, "the source folder itself was chosen, whatever names it"


def test_what_a_clone_does_not_bring_along_has_no_say(tmp_path: Path) -> None:
    write(tmp_path / ".git" / "info", "*.log\n", "exclude")
    assert left_out_by(tmp_path, "a.log") is None


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        (b"\xef\xbb\xbf*.log\n", "a.log"),
        (b"*.log\r\n", "a.log"),
        (b"*.log", "a.log"),
        (b"caf\xe9\n", os.fsdecode(b"caf\xe9")),
        (b"[z-a]\n\\\n/\n!\n*.log\n", "a.log"),
        ("à\n".encode(), "à"),
        (b"a\\ \n", "a "),
    ],
)
def test_ignore_files_written_anyhow_are_understood(tmp_path: Path, lines: bytes, path: str) -> None:
    write(tmp_path, lines)
    assert left_out_by(tmp_path, path)
    assert left_out_by(tmp_path, "train.py") is None


letters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.sampled_from("*?[]\\! #\udce9\n")
names = st.text(letters, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))


@settings(deadline=None, max_examples=200)
@given(path=st.lists(names, min_size=1, max_size=3).map("/".join), more=names)
def test_the_line_made_for_a_path_names_that_path_and_no_other(path: str, more: str) -> None:
    (line,) = ignore._parse(os.fsencode(ignore.pattern_for(path)).decode("latin-1"), "x")
    named = ignore.Rules(git=(ignore._IgnoreFile(0, "", (line,)),))
    assert named.verdict(path, is_dir=False)
    assert not named.verdict(path + more, is_dir=False)
    assert not named.verdict(f"{more}/{path}", is_dir=False)


@pytest.mark.parametrize(
    "name", [".git", ".hg", ".svn", ".DS_Store", "a.pyc", "__pycache__", "node_modules", ".venv", "venv"]
)
def test_some_names_are_never_packed(tmp_path: Path, name: str) -> None:
    rule = ignore.never_packed(str(tmp_path / name), is_dir=True)
    assert rule
    assert rule.startswith("always left out: ")


@pytest.mark.parametrize("mark", ["pyvenv.cfg", "conda-meta"])
def test_a_virtual_environment_is_known_by_what_is_in_it(tmp_path: Path, mark: str) -> None:
    environment = tmp_path / "my tools"
    environment.mkdir()
    assert ignore.never_packed(str(environment), is_dir=True) is None
    (environment / mark).mkdir()
    assert ignore.never_packed(str(environment), is_dir=True) == "always left out: virtual environment"


@pytest.mark.parametrize("name", ["venv", "env", "node_modules", "git", ".gitignore", "a.py", ".github", "cache"])
def test_files_that_are_merely_called_alike_are_packed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert ignore.never_packed(str(tmp_path / name), is_dir=False) is None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file here that root cannot read either")
def test_an_ignore_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").symlink_to("/proc/self/mem")
    with pytest.raises(BadInput, match=r"cannot read '\.gitignore': "):
        ignore.rules_of(tmp_path)
