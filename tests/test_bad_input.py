"""What bad input gets: one clear line and a remedy, the exit code of its kind, and nothing written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import main
from tests.conftest import Answer, Orchestrate
from tests.test_runs import linux_only, without_root_powers

Typed = Callable[..., Answer]


@pytest.fixture
def typed(home: Path, project: Path, capfd: pytest.CaptureFixture[str]) -> Typed:
    """The command line, in this process: forty of them in a second."""

    def run(*words: str) -> Answer:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        out, err = capfd.readouterr()
        return Answer(int(end.value.code or 0), out, err)

    return run


def files(folder: Path) -> None:
    """A project with one good script and many bad ones."""
    (folder / "train.py").write_text("import json\nprint(json.dumps({}))\n")
    (folder / "empty.py").write_text(" \n")
    (folder / "broken.py").write_text("x = 1\ndef f(:\n    pass\n")
    (folder / "binary.py").write_bytes(b"\x7fELF\x00\x01\x02")
    (folder / "utf16.py").write_bytes("print(1)\n".encode("utf-16"))
    (folder / "notebook.ipynb").write_text("{}")
    (folder / "notes.txt").write_text("not python\n")
    (folder / "typo.py").write_text("import torchvison_\n")
    (folder / "block.py").write_text("# /// script\n# dependencies = [\n# ///\nprint()\n")
    (folder / "src").mkdir()
    (folder / "src" / "main.py").write_text("print()\n")
    (folder / "hollow").mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "x.csv").write_text("1\n")
    (folder / "typo.toml").write_text('instanse = "ml.m5.xlarge"\n')
    (folder / "empty.toml").write_text("")
    (folder / "bad.toml").write_text("count = \n")


LONG = "x" * 300
SECRET = "AKIA" + "IOSFODNN7EXAMPLF"
AWS = [
    "--backend", "sagemaker", "--region", "us-east-1", "--bucket", "my-bucket", "--role", "arn:aws:iam::111122223333:role/x",
]  # fmt: skip
SUBMIT_ROWS: list[tuple[list[str], int, str]] = [
    # scripts
    (["missing.py"], 2, "no such file: 'missing.py'"),
    (["trian.py"], 2, "did you mean train.py?"),
    (["nosuchname"], 3, "no file and no shipped entrypoint is called 'nosuchname'"),
    (["src"], 2, "is a folder, not a script"),
    (["empty.py"], 2, "empty.py is empty"),
    (["broken.py"], 2, "broken.py:2: invalid syntax"),
    (["binary.py"], 2, "binary.py is not a text file"),
    (["utf16.py"], 2, "utf16.py is not a text file"),
    (["notebook.ipynb"], 2, "is a notebook"),
    (["notes.txt"], 2, "is not a Python script"),
    (["typo.py"], 2, "imports what is not installed here: torchvison_"),
    (["block.py"], 2, "script block is not TOML"),
    (["loop.py"], 2, "not a regular file"),
    (["a\nb.py"], 2, "holds a control character: 'a\\nb.py'"),
    (["\x1b[31mred.py"], 2, "holds a control character: '\\x1b[31mred.py'"),
    ([LONG + ".py"], 2, "no such file"),
    (["", "--dry-run"], 2, "script is empty"),
    # machines, backends, regions
    (["--instance", "ml.p3.2xlage"], 3, "try: --instance ml.p3.2xlarge (8 vCPU"),
    (["--instance", "p3.2xlarge"], 3, "ml.p3.2xlarge"),
    (["--instance", "ml.t2.medium"], 3, "ml.t2.medium"),
    (["--instance", ""], 2, "--instance is empty"),
    (["--backend", "sagemakr"], 2, "did you mean sagemaker?"),
    (["--backend", "azure"], 2, "one of: local, sagemaker, vertex"),
    (AWS, 2, "needs a machine"),
    ([*AWS, "--instance", "n1-standard-4"], 3, "n1-standard-4"),
    (["--backend", "vertex", "--instance", "ml.m5.xlarge"], 3, "ml.m5.xlarge"),
    (["--region", "us-east-9"], 3, "did you mean us-east-"),
    # numbers
    (["--count", "0"], 2, "--count 0 is too small"),
    (["--count", "-2"], 2, "--count -2 is too small"),
    (["--count", "1.5"], 2, "--count '1.5' is not a whole number"),
    (["--count", "٣"], 2, "is not a whole number"),
    (["--count", "1e3"], 2, "is not a whole number"),
    (["--count", "100000"], 2, "over this tool's cap of 64"),
    (["--count", "2"], 2, "a local run has one machine"),
    (["--processes", "0"], 2, "--processes 0 is too small"),
    (["--max-hours", "-1"], 2, "--max-hours -1 must be above 0"),
    (["--max-hours", "0"], 2, "--max-hours 0 must be above 0"),
    (["--max-hours", "nan"], 2, "--max-hours 'nan' is not a finite number"),
    (["--max-hours", "inf"], 2, "--max-hours 'inf' is not a finite number"),
    (["--max-hours", "1e999"], 2, "--max-hours '1e999' is not a finite number"),
    (["--max-hours", "2,5"], 2, "a decimal point, no commas"),
    (["--max-hours", "700"], 2, "over the clouds' longest job of 672 h"),
    (["--max-hours", "0.0001"], 2, "under one minute"),
    (["--max-hours", ""], 2, "--max-hours '' is not a finite number"),
    (["--budget", "nan"], 2, "--budget 'nan' is not a finite number"),
    (["--budget", "-5"], 2, "--budget -5 must be above 0"),
    (["--budget", "0"], 2, "--budget 0 must be above 0"),
    (["--budget", "$10"], 2, "USD without a sign"),
    (["--budget", "10EUR"], 2, "is not a plain number"),
    (["--grace-seconds", "x"], 2, "--grace-seconds 'x' is not a whole number"),
    # a budget below the cost
    (
        [*AWS, "--instance", "ml.m5.xlarge", "--max-hours", "10", "--budget", "1"],
        4,
        "is over the budget of $1",
    ),
    ([*AWS, "--instance", "ml.m5.xlarge", "--budget", "0.001"], 4, "--budget 0.001 buys 0 s of 1 × ml.m5.xlarge"),
    ([*AWS, "--instance", "ml.p6-b200.48xlarge", "--budget", "100"], 4, "is unknown, so --budget 100 cannot be held"),
    # what a cloud must be told
    (["--rehearse"], 2, "--rehearse rehearses a cloud"),
    ([*AWS, "--instance", "ml.t2.medium"], 3, "ml.t3.medium"),
    ([*AWS, "--instance", "ml.m5.xlarge,ml.t2.medium"], 3, "ml.t2.medium"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--region", "us-east-9"], 3, "us-east-2"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--role", "training"], 2, "is not the ARN of a role"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--bucket", "My_Bucket"], 2, "cannot be a bucket's name"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--max-wait", "3"], 2, "--max-wait has no effect without --spot"),
    (
        [*AWS, "--instance", "ml.m5.xlarge", "--spot", "--max-hours", "2", "--max-wait", "1"],
        2,
        "is less than --max-hours",
    ),
    ([*AWS, "--instance", "ml.m5.xlarge", "--spot", "--keep-alive", "5"], 2, "cannot be had with --spot"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--volume", "0"], 2, "--volume 0 is too small"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--volume", "99999"], 2, "--volume 16384"),
    (
        [*AWS, "--instance", "ml.m5.xlarge", "--subnet", "subnet-0123456789abcdef0"],
        2,
        "both --subnet and --security-group",
    ),
    ([*AWS, "--instance", "ml.m5.xlarge", "--data", "gs://b/x"], 2, "SageMaker reads s3://, not gs://"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--data", "s3:///x"], 2, "is not a valid s3:// address"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--data", "s3://B_ucket/x"], 2, "is not a valid s3:// address"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--tag", "aws:x=1"], 2, "aws:x"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--tag", "x"], 2, "is not name=value"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--tag", f"key={SECRET}"], 2, "looks like a secret"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--torch", "two"], 2, "is not a version"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--torch", "9.9"], 3, "9.9"),
    ([*AWS, "--instance", "ml.m5.xlarge", "--metric", "a b"], 2, "is not a metric's name"),
    (
        [*AWS, "--instance", "ml.m5.xlarge", "--image", "111122223333.dkr.ecr.eu-west-1.amazonaws.com/x:1"],
        2,
        "eu-west-1",
    ),
    ([*AWS, "--instance", "ml.m5.xlarge", "--fallback", "vertex"], 2, "--fallback 'vertex'"),
    # names
    (["--name", "a b"], 2, "--name a-b"),
    (["--name", "job\nX-Header: 1"], 2, "'job\\nX-Header: 1'"),
    (["--name", "../../etc"], 2, "may use a-z"),
    (["--name", "$(id)"], 2, "may use a-z"),
    (["--name", LONG], 2, "--name has 300 characters, at most 38"),
    (["--name", "обучение"], 2, "may use a-z"),
    (["--name", "\x1b[31mred"], 2, "'\\x1b[31mred'"),
    # hyperparameters, environment
    (["--hp", "lr"], 2, "--hp 'lr' is not name=value"),
    (["--hp", "=3"], 2, "has no name before '='"),
    (["--hp", 'a"b=1'], 2, "may use letters, digits"),
    (["--hp", "lr=1", "--hp", "lr=2"], 2, "--hp lr is given twice ('1', '2')"),
    (["--hp", "token=hf_" + "aB3dE5gH7jK9mN1pQ3sT5vX7zA9cE1gI3k"], 2, "looks like a secret"),
    (["--hp", "note=" + "x" * 70_000], 2, "has 70,000 bytes"),
    (["--env", "A-B=1"], 2, "is not a variable's name"),
    (["--env", "LD_PRELOAD=x"], 2, "--env LD_PRELOAD is reserved"),
    (["--env", "SM_MODEL_DIR=/x"], 2, "--env SM_MODEL_DIR is reserved"),
    # data
    (["--data", "nowhere"], 2, "--data training: no such folder 'nowhere'"),
    (["--data", "dta"], 2, "did you mean --data training=data?"),
    (["--data", "mnist"], 2, "--data training=sample:mnist"),
    (["--data", "hollow"], 2, "'hollow' is empty"),
    (["--data", "train.py"], 2, "is a file; a channel is a folder"),
    (["--data", "tr ain=data"], 2, "channel 'tr ain'"),
    (["--data", "code=data"], 2, "is reserved for the package"),
    (["--data", "a=data", "--data", "a=src"], 2, "--data a is given twice"),
    (["--data", "s3://bucket/data"], 2, "aws s3 sync s3://bucket/data"),
    (["--data", "https://example.org/x"], 2, "is not a place that a channel can be filled from"),
    (["--data", "training="], 2, "names no place"),
    # files and flags
    (["--config", "typo.toml"], 2, "typo.toml:1: unknown key 'instanse'"),
    (["--config", "bad.toml"], 2, "bad.toml: Invalid value"),
    (["--config", "nowhere.toml"], 2, "cannot read"),
    (["--config", "src"], 2, "is a folder, not a settings file"),
    (["--source-dir", "nowhere"], 2, "--source-dir 'nowhere' does not exist"),
    (["--instnace", "ml.m5.xlarge"], 2, "did you mean --instance?"),
    (["train.py", "extra.py"], 2, "unexpected extra argument"),
]


@pytest.mark.parametrize(("words", "code", "needle"), SUBMIT_ROWS)
def test_bad_input_to_submit(words: list[str], code: int, needle: str, typed: Typed, project: Path, home: Path) -> None:
    files(project)
    if words == ["loop.py"]:
        (project / "loop.py").symlink_to("loop.py")
    if not any(word.endswith((".py", ".ipynb", ".txt")) or word in ("src", "nosuchname", "") for word in words[:1]):
        words = ["train.py", *words]
    answer = typed("submit", *words)
    assert answer.code == code, answer.err
    assert needle in answer.err
    assert answer.err.startswith("error: ")
    assert any(word in answer.err for word in ("\n  try: ", "\n  did you mean ", "\n  one of: "))
    assert len(answer.err.strip().splitlines()) == 2, "one line and one remedy"
    assert "Traceback" not in answer.err
    assert "\x1b" not in answer.err
    assert not answer.out
    assert not home.exists(), "nothing may be written"


def test_there_are_at_least_forty_of_them() -> None:
    assert len({tuple(words) for words, _, _ in SUBMIT_ROWS}) >= 40


def test_a_nul_byte_in_an_argument_is_refused(typed: Typed, project: Path, home: Path) -> None:
    """No shell can type one, but an orchestrate.toml or a program can."""
    files(project)
    answer = typed("submit", "train.py", "--", "a\0b")
    assert answer.code == 2
    assert "'a\\x00b' holds a NUL byte" in answer.err
    assert not home.exists()


def test_all_that_is_wrong_is_told_at_once(typed: Typed, project: Path) -> None:
    files(project)
    answer = typed("submit", "broken.py", "--data", "nowhere", "--instance", "ml.p3.2xlage")
    assert answer.err.count("error: ") == 3
    assert typed("submit", "train.py", "--count", "x", "--hp", "lr", "--max-hours", "-1").err.count("error: ") == 3


def test_with_json_the_fault_is_one_document_on_stdout(typed: Typed, project: Path) -> None:
    files(project)
    answer = typed("submit", "broken.py", "--json")
    assert answer.code == answer.json["exit_code"] == 2
    assert "broken.py:2: invalid syntax" in answer.json["errors"][0]["error"]


@pytest.mark.parametrize(
    ("words", "code", "needle"),
    [
        (["status", "r-999"], 3, "no run 'r-999'"),
        (["logs", "r-999"], 3, "no run 'r-999'"),
        (["artifacts", "r-999"], 3, "no run 'r-999'"),
        (["cancel", "r-999"], 3, "no run 'r-999'"),
        (["status"], 3, "there are no runs yet"),
        (["copy", "mpl"], 3, "did you mean mlp?"),
        (["copy", "mlp", "train.py"], 2, "is a file, not a folder"),
        (["package", "missing.py"], 2, "no such file"),
        (["package", "train.py", "--why", "nowhere.py"], 2, "nowhere.py"),
        (["list", "--limit", "0"], 2, "greater than or equal to 1"),
        (["sbumit"], 2, "sbumit"),
    ],
)
def test_bad_input_to_the_other_commands(words: list[str], code: int, needle: str, typed: Typed, project: Path) -> None:
    files(project)
    answer = typed(*words)
    assert answer.code == code, answer.err
    assert needle in answer.err
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err


def test_a_copy_replaces_nothing_that_was_edited(typed: Typed, project: Path) -> None:
    assert typed("copy", "mlp").code == 0
    (project / "mlp.py").write_text("# mine\n")
    answer = typed("copy", "mlp")
    assert answer.code == 2
    assert "is there already" in answer.err
    assert (project / "mlp.py").read_text() == "# mine\n"
    assert typed("copy", "mlp", "--force").code == 0
    assert (project / "mlp.py").read_text() != "# mine\n"


@linux_only
def test_an_unreadable_script_and_a_read_only_state_folder(home: Path, project: Path) -> None:
    files(project)
    (project / "train.py").chmod(0)
    (project / "fine.py").write_text("print(1)\n")
    home.mkdir()
    home.chmod(0o500)
    code = "import os, sys; from orchestrator.cli import main; os.chdir(sys.argv[1]); main(sys.argv[2:])"
    unreadable = without_root_powers(code, str(project), "submit", "train.py")
    assert unreadable.returncode == 2
    assert "train.py" in unreadable.stderr
    assert "Permission denied" in unreadable.stderr
    (project / "train.py").chmod(0o600)
    read_only = without_root_powers(code, str(project), "submit", "fine.py")
    assert read_only.returncode == 2
    assert read_only.stderr.splitlines()[-2].startswith("error: cannot use ")
    assert "export ORCHESTRATE_HOME=" in read_only.stderr
    assert not list(home.iterdir())
    assert without_root_powers(code, str(project), "submit", "fine.py", "--dry-run").returncode == 0
    home.chmod(0o700)


def test_a_state_folder_that_is_a_file_is_told(orchestrate: Orchestrate, project: Path, tmp_path: Path) -> None:
    files(project)
    (tmp_path / "file").write_text("")
    answer = orchestrate("submit", "train.py", env={"ORCHESTRATE_HOME": str(tmp_path / "file")})
    assert answer.code == 2
    assert "export ORCHESTRATE_HOME=" in answer.err
    listed = orchestrate("list", env={"ORCHESTRATE_HOME": str(tmp_path / "file")})
    assert listed.code == 2
    assert "is a file, not a folder" in listed.err
    with contextlib.suppress(FileNotFoundError):
        assert (tmp_path / "file").stat().st_size == 0


@pytest.mark.slow
def test_a_full_disk_starts_nothing_and_loses_nothing(
    small_disk: Path, project: Path, orchestrate: Orchestrate
) -> None:
    (project / "train.py").write_text("print('it ran')\n")
    (project / "weights.bin").write_bytes(os.urandom(3_000_000))
    answer = orchestrate("submit", "train.py", env={"ORCHESTRATE_HOME": str(small_disk / "state")})
    assert answer.code == 2, answer.err
    assert "is full" in answer.err
    assert "it ran" not in answer.out
    left = [path.name for path in small_disk.rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".part", ".gz"))], left
    (project / "weights.bin").unlink()
    again = orchestrate("submit", "train.py", env={"ORCHESTRATE_HOME": str(small_disk / "state")})
    assert "it ran" in again.out, again.err
    states = [
        run["state"] for run in orchestrate("list", "--json", env={"ORCHESTRATE_HOME": str(small_disk / "state")}).json
    ]
    assert states == ["succeeded", "abandoned"]
