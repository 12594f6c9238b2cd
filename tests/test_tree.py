"""Which files of a folder go along, which stay, and what cannot travel at all."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import tree
from orchestrator.errors import BadInput, OrchestrateError
from orchestrator.package import scan
from orchestrator.tree import explain, walk

NOBODY = 65_534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return plant(tmp_path / "project", "train.py")


def plant(folder: Path, *paths: str, text: str = "1\n") -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def taken(source: Path) -> list[str]:
    return [file.path for file in walk(source).files]


def problems(source: Path, **options: object) -> list[str]:
    return [problem.what for problem in walk(source, **options).problems]  # type: ignore[arg-type]


@contextlib.contextmanager
def normal_user() -> Iterator[None]:
    """Without root's rights, to whom no file is unreadable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may look into, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with normal_user():
            if not os.access(folder, os.R_OK | os.X_OK):
                pytest.skip("temporary files lie where a normal user cannot go")
        yield folder


def test_everything_goes_along_but_what_a_rule_leaves_out(source: Path) -> None:
    plant(source, "lib/model.py", "notes.log", "runs/1/metrics", ".git/HEAD", "env/pyvenv.cfg", "env/bin/python")
    plant(source, ".gitignore", text="*.log\nruns/\n")
    listing = walk(source, script="train.py")
    assert [file.path for file in listing.files] == [".gitignore", "lib/model.py", "train.py"]
    assert [(item.path, item.rule, item.is_dir) for item in listing.left_out] == [
        (".git", "always left out: version control", True),
        ("env", "always left out: virtual environment", True),
        ("notes.log", ".gitignore:1: *.log", False),
        ("runs", ".gitignore:2: runs/", True),
    ]
    assert listing.problems == ()
    assert listing.size_bytes == len("*.log\nruns/\n") + 4


def test_a_file_that_a_line_brings_back_names_that_line(source: Path) -> None:
    plant(source, "keep.log", "data/a.csv")
    plant(source, ".gitignore", text="*.log\n!keep.log\ndata/\n")
    plant(source, ".orchestrateignore", text="!data/\n")
    rules = {file.path: file.rule for file in walk(source).files}
    assert rules["keep.log"] == ".gitignore:2: !keep.log"
    assert rules["data/a.csv"] == rules["train.py"] == tree.EVERYTHING


def test_orchestrates_own_state_stays_at_home(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(source, "state/ledger.sqlite", ".orchestrate/x", "lib/.orchestrate/y", "cache/mnist")
    (tmp_path / "alias").symlink_to(source / "state")
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "alias"))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(source / "cache"))
    assert taken(source) == ["train.py"]
    monkeypatch.setenv("ORCHESTRATE_HOME", str(source))
    with pytest.raises(BadInput, match="is where orchestrate keeps its state"):
        walk(source)


def test_a_script_has_the_x_bit_that_its_owner_gave_it(source: Path) -> None:
    plant(source, "run.sh", "group.sh")
    (source / "run.sh").chmod(0o700)
    (source / "group.sh").chmod(0o674)
    assert {file.path: file.mode for file in walk(source).files} == {
        "group.sh": 0o644,
        "run.sh": 0o755,
        "train.py": 0o644,
    }


@pytest.mark.parametrize(
    "name",
    ["it's", 'a"=0"', "a b", " a ", "a\nb", "a\tb", "\x1b[31m", "déjà", "模型", "a\\b", "-rf", "$(id)", "*", "x" * 255],
)
def test_a_file_of_any_name_that_utf8_can_write_is_packed(source: Path, name: str) -> None:
    plant(source, f"{name}/{name}")
    assert sorted(file.path for file in scan(source).files) == sorted([f"{name}/{name}", "train.py"])
    assert explain(source, f"{name}/{name}").included


def test_a_name_that_is_not_utf8_is_refused_and_shown(source: Path) -> None:
    try:
        (source / os.fsdecode(b"caf\xe9.txt")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert problems(source) == [r"cannot pack 'caf\udce9.txt': the name is not UTF-8"]
    plant(source, ".gitignore", text="caf*\n")
    assert problems(source) == []


def test_a_path_too_long_to_unpack_is_refused(source: Path) -> None:
    deep = "/".join(["d" * 200] * 11)
    descriptor = os.open(source, os.O_RDONLY)
    for part in deep.split("/"):
        os.mkdir(part, dir_fd=descriptor)
        inner = os.open(part, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    (problem,) = problems(source)
    assert problem.endswith("the path has over 2,048 bytes")


@pytest.mark.parametrize(("one", "other"), [("A.py", "a.py"), ("Data/x", "data/y"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_some_systems_take_for_one_are_refused(source: Path, one: str, other: str) -> None:
    plant(source, one, other)
    if len(list(source.iterdir())) < 3:
        pytest.skip("this file system takes them for one")
    (problem,) = problems(source)
    assert "are one name where case and accents do not count" in problem
    assert problem.isascii()


def test_links_inside_are_packed_as_what_they_lead_to(source: Path) -> None:
    plant(source, "lib/model.py", text="model\n")
    (source / "lib/model.py").chmod(0o755)
    (source / "again.py").symlink_to("lib/model.py")
    (source / "other").symlink_to(source / "lib")
    files = {file.path: file for file in scan(source).files}
    assert set(files) == {"again.py", "lib/model.py", "other/model.py", "train.py"}
    assert len({files[path].sha256 for path in ("again.py", "lib/model.py", "other/model.py")}) == 1
    assert files["again.py"].mode == 0o755


def test_links_that_lead_outside_or_nowhere_are_refused_with_their_target(source: Path, tmp_path: Path) -> None:
    plant(tmp_path, "secret", "projects/x")
    (source / "a").symlink_to("../secret")
    (source / "b").symlink_to("a")
    (source / "c").symlink_to("nowhere")
    (source / "d").symlink_to(tmp_path / "projects")
    source, outside = source.resolve(), "outside the source folder"
    assert problems(source) == [
        f"a leads to {source.parent}/secret, {outside}",
        f"b leads to {source.parent}/secret, {outside}",
        f"c leads to {source}/nowhere, which is not there",
        f"d leads to {source.parent}/projects, {outside}",
    ]


def test_link_loops_are_noticed_and_end(source: Path) -> None:
    plant(source, "a/x.py", "b/y.py")
    (source / "a/up").symlink_to("..")
    (source / "a/self").symlink_to(".")
    (source / "a/to_b").symlink_to("../b")
    (source / "b/to_a").symlink_to("../a")
    (source / "one").symlink_to("two")
    (source / "two").symlink_to("one")
    found = problems(source)
    assert {"one is a link in a loop", "two is a link in a loop"} < set(found)
    assert {
        "link loop: a/self leads back to a",
        "link loop: a/up leads back to .",
        "link loop: a/to_b/to_a leads back to a",
    } < set(found)


def test_a_link_into_what_is_never_packed_is_left_out_with_it(source: Path) -> None:
    plant(source, ".git/config", "tools/pyvenv.cfg", "tools/bin/x")
    (source / "history").symlink_to(".git")
    (source / "config").symlink_to(".git/config")
    (source / "x").symlink_to("tools/bin/x")
    assert taken(source) == ["train.py"]


def test_an_ignored_link_may_lead_anywhere(source: Path) -> None:
    (source / "data").symlink_to("/")
    (source / "gone").symlink_to("nowhere")
    plant(source, ".gitignore", text="data/\ngone\n")
    assert taken(source) == [".gitignore", "train.py"]
    assert problems(source) == []


def test_links_that_multiply_folders_without_end_are_stopped(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_MAX_ENTRIES", 500)
    for level in range(20):
        (source / f"d{level}").mkdir()
        for name in "ab":
            (source / f"d{level}" / name).symlink_to(f"../d{level + 1}")
    (source / "d20").mkdir()
    with pytest.raises(BadInput, match="over 500 files and folders in "):
        walk(source)


def test_pipes_and_sockets_are_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(source / "data.pipe")
    monkeypatch.chdir(source)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert problems(source) == [
            "data.pipe is a named pipe, not a regular file",
            "s is a socket, not a regular file",
        ]


def test_what_cannot_be_read_is_named_unless_it_is_ignored(open_folder: Path) -> None:
    source = plant(open_folder / "project", "train.py", "conf.yaml", "closed/x", "private.log", "hidden/y")
    plant(source, ".gitignore", text="*.log\nhidden/\n")
    assert len(scan(source).files) == 4
    for path in ("conf.yaml", "closed", "private.log", "hidden"):
        (source / path).chmod(0)
    with normal_user(), pytest.raises(OrchestrateError) as caught:
        scan(source)
    for path in ("closed", "hidden"):
        (source / path).chmod(0o755)
    assert str(caught.value) == "cannot read closed: Permission denied; cannot read conf.yaml: Permission denied"


def test_a_listing_of_a_huge_file_reads_none_of_it(source: Path) -> None:
    with (source / "data.bin").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing would take half an hour to read
    listing = walk(source)
    assert listing.size_bytes == (1 << 40) + 2
    assert [file.path for file in listing.largest(1)] == ["data.bin"]


def test_too_many_files_name_the_folder_that_holds_most(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILES", 20)
    plant(source, *(f"src/data/images/{number}" for number in range(16)), *(f"src/{number}.py" for number in range(3)))
    assert len(taken(source)) == 20
    plant(source, "one_more.py")
    with pytest.raises(BadInput, match=r"over 20 files in .*, most of them in src/data/images/") as caught:
        walk(source)
    assert "/src/data/images >> " in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["root", "home", "above"])
def test_the_home_folder_and_all_above_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = plant(tmp_path / "home" / "me", "x").resolve()
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(BadInput, match="too much to pack"):
        walk({"root": Path("/"), "home": home, "above": home.parent}[kind])


@pytest.mark.parametrize(("path", "words"), [("none", "no such folder"), ("train.py", "is not a folder")])
def test_a_source_that_is_no_folder_is_refused(source: Path, path: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        walk(source / path)


def test_a_script_that_stays_at_home_names_the_rule_and_how_to_bring_it_back(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(source, "build/it's.py")
    plant(source, ".gitignore", text="build/\n")
    monkeypatch.chdir(source)
    (problem,) = walk(source, script="build/it's.py").problems
    assert problem.what == "the script build/it's.py is left out by .gitignore:1: build/"
    assert problem.hint == "bring it back: echo '!/build' >> .orchestrateignore"
    subprocess.run(["sh", "-c", problem.hint.removeprefix("bring it back: ")], check=True)
    assert walk(source, script="build/it's.py").problems == ()


def test_a_script_that_is_not_there_names_the_nearest(source: Path) -> None:
    (problem,) = walk(source, script="trian.py").problems
    assert problem.what == "no such file in the source folder: trian.py"
    assert problem.hint == "did you mean train.py?"


@pytest.mark.parametrize(
    "name", ["id_rsa", "it's $(x) id_rsa/.env", "a\nb/.netrc", "[x]*?/.pypirc", "#!/.env.b ", "a\\nb\\/.env"]
)
def test_the_hint_of_a_refused_file_does_what_it_says(source: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plant(source, name)
    monkeypatch.chdir(source)
    (problem,) = walk(source).problems
    command, _, allowance = (problem.hint or "").partition("   or send it: ")
    assert walk(source, allow_files=[name]).problems == ()
    assert allowance.startswith("--allow-file ")
    subprocess.run(["sh", "-c", command.removeprefix("leave it out: ")], check=True)
    assert problems(source) == []
    assert name not in taken(source)


def test_a_link_to_a_secret_is_one(source: Path) -> None:
    plant(source, ".env")
    plant(source, ".gitignore", text="/.env\n")
    (source / "settings").symlink_to(".env")
    assert problems(source) == ["settings looks like it holds environment variables, often with passwords"]


def test_an_allowance_for_nothing_is_an_error(source: Path) -> None:
    plant(source, ".env")
    plant(source, ".gitignore", text=".env\n")
    assert problems(source, allow_files=["trian.py", "./.env"]) == [
        "--allow-file .env: it is left out by .gitignore:1: .env",
        "no such file in the source folder: trian.py",
    ]


def test_why_answers_for_files_folders_and_what_lies_in_them(source: Path) -> None:
    plant(source, "data/raw/x.csv", "lib/m.py", ".env", "a.log", ".git/HEAD", "keep.log")
    plant(source, ".gitignore", text="data/\n*.log\n!keep.log\n")
    (source / "loop").symlink_to(".")

    def why(path: str | Path) -> tuple[bool, str]:
        explanation = explain(source, path)
        return explanation.included, explanation.rule

    assert why("train.py") == why("lib") == why("lib/m.py") == why(".") == (True, tree.EVERYTHING)
    assert why(source / "lib/../train.py") == (True, tree.EVERYTHING)
    assert why("keep.log") == (True, ".gitignore:3: !keep.log")
    assert why("a.log") == (False, ".gitignore:2: *.log")
    assert why("data") == (False, ".gitignore:1: data/")
    assert why("data/raw/x.csv") == (False, ".gitignore:1: data/ (the folder data)")
    assert why(".git/HEAD") == (False, "always left out: version control (the folder .git)")
    assert why("loop") == (False, "refused: link loop: loop leads back to .")
    assert why(".env")[1].startswith("refused: .env looks like it holds ")
    assert explain(source, ".env", allow_files=[".env"]).included


def test_why_finds_a_key_in_the_file(source: Path) -> None:
    plant(source, "conf.py", text="token = '" + "hf" + "_" + "aB3dE5" * 6 + "'\n")
    assert explain(source, "conf.py").rule == "refused: it looks like it holds a secret (Hugging Face token)"
    assert explain(source, "conf.py", allow_files=["conf.py"]).included


@pytest.mark.parametrize("path", ["trian.py", "train.py/x", "lib/m.py"])
def test_why_of_a_missing_path_names_the_nearest(source: Path, path: str) -> None:
    plant(source, "lib/model.py")
    with pytest.raises(BadInput, match=f"no such file in the source folder: {path}") as caught:
        explain(source, path)
    assert (caught.value.hint or "").startswith("did you mean ")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "lib/../../x"])
def test_why_of_a_path_outside_says_so(source: Path, path: str) -> None:
    with pytest.raises(BadInput, match="is outside"):
        explain(source, path)


def test_why_and_the_listing_agree_on_every_path(source: Path) -> None:
    plant(source, "a/b/c.py", "a/b/d.log", "a/x/y/z.txt", "node_modules/m.js", "k.log", "sub/t.tmp", "sub/keep/t.tmp")
    plant(source, ".gitignore", text="*.log\n!k.log\nx/\n")
    plant(source, "sub/.orchestrateignore", text="*.tmp\n!keep/\n!keep/*.tmp\n")
    (source / "link").symlink_to("a/b")
    listing = walk(source)
    for file in listing.files:
        assert explain(source, file.path) == tree.Explanation(file.path, True, file.rule)
    for item in listing.left_out:
        assert explain(source, item.path) == tree.Explanation(item.path, False, item.rule)
    assert len(listing.files) > 5
    assert len(listing.left_out) > 4


def test_a_source_folder_reached_by_a_link_is_the_same_source(source: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(source)
    assert walk(tmp_path / "alias").files == walk(source).files
    assert explain(tmp_path / "alias", tmp_path / "alias" / "train.py").included


def test_a_hundred_problems_are_told_in_twenty_lines(source: Path) -> None:
    plant(source, *(f"{number}/.env" for number in range(100)))
    with pytest.raises(OrchestrateError) as caught:
        scan(source)
    told = str(caught.value).split("; ")
    assert len(told) == 21
    assert told[-1] == "… and 80 more of the source folder's files cannot be packed"
