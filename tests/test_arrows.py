"""Who may import whom (docs/design.md), held by reading the imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Each layer may import its own members' betters: those further down the list. Within a row, a dict of allowed neighbours.
LAYERS = (
    ("cli", "__main__", "interop", ""),
    ("api", "cli_costs"),
    ("submit_command", "options", "estimate_command", "machines_command", "costs_command", "prices_command"),
    ("estimate_view", "estimate_page"),
    ("estimating", "estimate_chart"),
    ("faults",),
    ("submitting",),
    ("watch", "copying", "smoke"),
    ("launch",),
    ("render",),
    ("preparing", "comparison", "bill_tree"),
    ("spending", "choosing"),
    ("planned_cost", "history"),
    ("finding", "tables"),
    ("staging",),
    ("rehearsal.__main__",),
    ("rehearsal.server",),
    ("rehearsal.front",),
    ("rehearsal.training_jobs",),
    ("rehearsal.job", "rehearsal.account"),
    ("rehearsal.runner", "rehearsal.control", "rehearsal.contract"),
    ("rehearsal.faults",),
    ("rehearsal.hosts",),
    ("rehearsal.container",),
    ("rehearsal",),
    ("backends.local", "backends.supervisor", "backends.sagemaker"),
    ("aws.syncing",),
    ("aws.collecting", "aws.following"),
    ("backends.process", "backends.files", "aws.jobs"),
    ("money",),
    ("backends",),
    ("aws.request",),
    ("package",),
    ("tree",),
    ("ignore",),
    ("plan",),
    ("aws.place",),
    ("entrypoint", "settings", "runs", "budgets", "books"),
    ("pricefiles",),
    ("sqlitefile", "google_billing"),
    ("samples",),
    ("aws.rules",),
    ("aws.transfer", "aws.logs", "aws.pricelist", "unpack"),
    ("aws.client", "aws.folders"),
    ("aws.explain", "aws.model"),
    ("aws.failures",),
    ("cloudspec", "spendspec"),
    ("spec",),
    ("metrics", "state", "secrets", "bundled", "crashpoints"),
    ("errors", "quick"),
    ("bootstrap", "aws"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Within one layer, only these.
NEIGHBOURS = {("__main__", "cli"), ("", "interop")}


def modules(package: str) -> dict[str, ast.Module]:
    root = REPOSITORY / package
    found = {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


def imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(tree: ast.Module, known: set[str]) -> set[str]:
    return {name.removeprefix("orchestrator.") for name in imports(tree) if name.startswith("orchestrator.")} & known


ORCHESTRATOR = modules("orchestrator")


def test_every_module_has_its_layer() -> None:
    assert set(ORCHESTRATOR) == set(LEVEL)


@pytest.mark.parametrize("name", sorted(ORCHESTRATOR))
def test_a_module_imports_only_what_stands_below_it(name: str) -> None:
    for other in own_imports(ORCHESTRATOR[name], set(ORCHESTRATOR)):
        below = LEVEL[other] > LEVEL[name] or (name, other) in NEIGHBOURS
        assert below, f"{name} imports {other}, which does not stand below it"


@pytest.mark.parametrize("name", sorted(name for name in ORCHESTRATOR if name.startswith(("backends", "aws"))))
def test_backends_know_their_cloud_as_an_endpoint_and_never_the_rehearsal(name: str) -> None:
    assert not [other for other in own_imports(ORCHESTRATOR[name], set(ORCHESTRATOR)) if other.startswith("rehearsal")]


def test_estimates_know_nothing_of_the_orchestrator() -> None:
    for name, tree in modules("estimates").items():
        assert not any(word.startswith("orchestrator") for word in imports(tree)), name


def test_nobody_imports_entrypoints_and_they_import_nobody() -> None:
    for package in ("orchestrator", "estimates"):
        for name, tree in modules(package).items():
            assert not any(word.split(".")[0] == "entrypoints" for word in imports(tree)), name
    for name, tree in modules("entrypoints").items():
        assert not {word.split(".")[0] for word in imports(tree)} & {"orchestrator", "estimates"}, name


def test_bootstrap_imports_the_standard_library_alone() -> None:
    assert {word.split(".")[0] for word in imports(ORCHESTRATOR["bootstrap"])} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("submit", "--help"),
        ("list",),
        ("submit", "--dry-run"),
        ("package",),
        ("estimate", "mlp", "--hours", "1"),
        ("machines",),
        ("costs",),
    ],
)
def test_a_command_loads_no_cloud_sdk_and_no_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    code = (
        "import sys\n"
        "from orchestrator.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'boto3', 'botocore', 'google', 'sagemaker', 'plotly'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ORCHESTRATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_help_loads_nothing_of_ours_but_the_command_line() -> None:
    code = (
        "import sys\n"
        "from orchestrator.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "ours = sorted(m for m in sys.modules if m.split('.')[0] in ('orchestrator', 'estimates'))\n"
        "assert 'pydantic' not in sys.modules\n"  # Typer loads it itself, for commands, not for the help
        "known = ['orchestrator', *(f'orchestrator.{m}' for m in ('cli', 'cli_costs', 'errors', 'faults', 'options', 'quick'))]\n"
        "assert ours == known, ours\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_over_500_lines_and_no_function_over_60() -> None:
    for package in ("orchestrator", "estimates", "entrypoints"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            text = path.read_text("utf-8")
            assert len(text.splitlines()) <= 500, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    allowed = 90 if node.name == "submit" and path.name == "cli.py" else 60  # a flag a line
                    assert length <= allowed, f"{path.name}: {node.name} has {length} lines"
