"""What the documents show exists, and what exists is in the documents."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main

from orchestrator import settings
from orchestrator.cli import app
from tests.conftest import REPOSITORY, Orchestrate

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def shown_commands() -> list[str]:
    """Every line of the README's console blocks that begins with the command."""
    text = (REPOSITORY / "README.md").read_text("utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [
        line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("orchestrate ")
    ]


def test_the_readmes_commands_are_many_enough_to_be_worth_testing() -> None:
    assert len(shown_commands()) >= 15


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_of_the_readme_exists_with_its_flags(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    known = {flag for parameter in COMMANDS[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    own = words[: words.index("--")] if "--" in words else words
    assert {word for word in own if word.startswith("-")} <= known, line


def test_every_command_and_every_option_of_submit_is_in_the_documents() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    for name in COMMANDS:
        assert f"orchestrate {name}" in text, name
    for parameter in COMMANDS["submit"].params:
        names = {*parameter.opts, parameter.name, {"budget": "budget_usd", "env": "environment"}.get(parameter.name)}
        assert any(str(name) in text for name in names), parameter.name


def test_every_settings_key_is_in_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text("utf-8")
    for key in (*settings._TOP, *settings._LIMITS):
        assert re.search(rf"\b{key}\b", text), key


def test_the_readmes_settings_file_is_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (REPOSITORY / "README.md").read_text("utf-8"), re.DOTALL)
    assert tomllib.loads(block)
    (tmp_path / "orchestrate.toml").write_text(block)
    spec = settings.load(settings.Flags(), tmp_path / "orchestrate.toml")
    assert dict(spec.hyperparameters) == {"lr": "0.10"}


@pytest.mark.slow
def test_the_readmes_own_script_commands_run(orchestrate: Orchestrate, project: Path) -> None:
    (project / "train.py").write_text("import sys\nprint('arguments', sys.argv[1:])\n")
    (project / "data").mkdir()
    (project / "data" / "x.csv").write_text("1\n")
    for line in shown_commands():
        words = shlex.split(line)[1:]
        if words[0] in ("submit", "package") and not {
            "mlp",
            "--detach",
            "--processes",
            "--resume-from",
            "--backend",
        } & set(words):
            answer = orchestrate(*words)
            assert answer.code == 0, f"{line}: {answer.err}"


def test_no_page_names_a_file_that_is_not_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
