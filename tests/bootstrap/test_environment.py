"""What bootstrap.py needs to find, what it refuses, and the environment that a script finds."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import bootstrap

from .conftest import BOOTSTRAP, Place

SHOW = {"train.py": "import json, os; print(json.dumps(dict(os.environ)))"}


def test_it_is_python_3_9_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(BOOTSTRAP.read_bytes(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_the_script_finds_the_uniform_environment(place: Place) -> None:
    place.lay_out(
        SHOW,
        hosts=("algo-1",),
        channels=("training", "data.v-2"),
        hyperparameters={"lr": "1e-5", "batch-size": "064", "on": "true", "name": 'a"b é'},
        arguments=["--x", "1"],
        environment={"MINE": "é\n$HOME", "LANG": "C"},
    )
    inherited = {"SM_CHANNEL_OLD": "stale", "SM_HP_OLD": "stale", "SM_MODEL_DIR": "stale", "KEPT": "yes"}
    found = json.loads(place.ended(place.start(env=inherited)).out)
    root = str(place.root)
    words = ["--lr", "1e-5", "--batch-size", "064", "--on", "true", "--name", 'a"b é', "--x", "1"]
    expected: dict[str, str] = {
        "SM_MODEL_DIR": f"{root}/model",
        "SM_OUTPUT_DIR": f"{root}/output",
        "SM_OUTPUT_DATA_DIR": f"{root}/output/data",
        "SM_INPUT_DIR": f"{root}/input",
        "SM_INPUT_CONFIG_DIR": f"{root}/input/config",
        "SM_CHANNELS": '["data.v-2","training"]',
        "SM_CHANNEL_TRAINING": f"{root}/input/data/training",
        "SM_CHANNEL_DATA_V_2": f"{root}/input/data/data.v-2",
        "SM_HOSTS": '["algo-1"]',
        "SM_CURRENT_HOST": "algo-1",
        "SM_NETWORK_INTERFACE_NAME": "lo",
        "SM_HPS": '{"batch-size":"064","lr":1e-5,"name":"a\\"b \\u00e9","on":true}',
        "SM_HP_LR": "1e-5",
        "SM_HP_BATCH_SIZE": "064",
        "SM_HP_ON": "true",
        "SM_HP_NAME": 'a"b é',
        "SM_USER_ARGS": json.dumps(words, separators=(",", ":")),
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_RESOURCE_CONFIG": '{"current_host":"algo-1","hosts":["algo-1"],"network_interface_name":"lo"}',
        "SM_INPUT_DATA_CONFIG": '{"code":{},"data.v-2":{},"job":{},"training":{}}',
        "SM_NUM_CPUS": str(bootstrap.cpu_count()),
        "SM_NUM_GPUS": str(bootstrap.gpu_count()),
        "AIP_MODEL_DIR": f"{root}/model/",
        "AIP_CHECKPOINT_DIR": f"{root}/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": f"{root}/output/data/tensorboard/",
        "ORCHESTRATE_RUN_ID": place.run_id,
    }
    assert {name: found[name] for name in found if name.startswith(("SM_", "AIP_", "ORCHESTRATE_"))} == {
        **{name: os.environ[name] for name in os.environ if name.startswith("ORCHESTRATE_") and name not in OWN},
        **expected,
    }
    assert (found["MINE"], found["LANG"], found["KEPT"]) == ("é\n$HOME", "C", "yes")
    assert found["PATH"].startswith(str(Path(sys.executable).parent) + ":")


OWN = ("ORCHESTRATE_ROOT", "ORCHESTRATE_JOB", "ORCHESTRATE_LIFELINE_FD")

WRONG: dict[str, dict[str, Any]] = {
    "version 2": {"version": 2},
    "version true": {"version": True},
    "no run id": {"run_id": ""},
    "script outside": {"script": "../train.py"},
    "script absolute": {"script": "/bin/true"},
    "script with NUL": {"script": "train.py\0"},
    "arguments a text": {"arguments": "--epochs 3"},
    "a number among the arguments": {"arguments": ["--epochs", 3]},
    "an argument with NUL": {"arguments": ["a\0b"]},
    "an argument without bytes": {"arguments": ["\ud800"]},
    "hyperparameters a list": {"hyperparameters": []},
    "a hyperparameter's value a number": {"hyperparameters": {"lr": 0.1}},
    "a hyperparameter with =": {"hyperparameters": {"a=b": "c"}},
    "a hyperparameter that is an option": {"hyperparameters": {"-x": "c"}},
    "a hyperparameter without a name": {"hyperparameters": {"": "c"}},
    "our variable": {"environment": {"SM_MODEL_DIR": "/"}},
    "our run id": {"environment": {"ORCHESTRATE_RUN_ID": "r-1"}},
    "variable with =": {"environment": {"A=B": "c"}},
    "variable null": {"environment": {"A": None}},
    "digest cut": {"package_digest": "0" * 63},
    "digest in capitals": {"package_digest": "A" * 64},
    "no process": {"processes": 0},
    "half a process": {"processes": 1.5},
    "negative grace": {"grace_seconds": -1},
    "endless grace": {"grace_seconds": float("inf")},
    "no number for grace": {"grace_seconds": float("nan")},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_named_with_its_value(tmp_path: Path, fields: dict[str, Any]) -> None:
    place = Place(tmp_path)
    place.lay_out(SHOW, **fields)
    (name,) = fields
    with pytest.raises(bootstrap.NotStarted, match=f"job.json: '{name}' must be .*, and is ") as refusal:
        bootstrap.read_fields(tmp_path / "input/data/job/job.json", bootstrap.JOB_FIELDS)
    assert "\n" not in str(refusal.value)


def test_a_bad_job_is_told_in_one_line_and_in_the_failure_file(place: Place) -> None:
    ended = place.run(SHOW, processes="2")
    where = place.root / "input/data/job/job.json"
    assert ended.failure == f"{where}: 'processes' must be a whole number from 1 to 1024, and is \"2\""
    assert (ended.code, ended.err, ended.out) == (2, f"[orchestrate] error: {ended.failure}\n", b"")


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "{}", "\ufeff{}", '{"version": 1}'])
def test_a_job_that_is_no_job_is_refused(place: Place, content: str) -> None:
    place.lay_out(SHOW)
    place.write("input/data/job/job.json", content)
    ended = place.ended(place.start())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, b"", 1)
    assert ended.failure is not None
    assert "job.json" in ended.failure


@pytest.mark.parametrize("name", ["job/job.json", "code/package.tar.gz", "../config/resourceconfig.json"])
def test_a_missing_file_is_named(place: Place, name: str) -> None:
    place.lay_out(SHOW)
    (place.root / "input/data" / name).unlink()
    ended = place.ended(place.start())
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert Path(name).name in ended.err


def test_another_job_json_can_be_named(place: Place) -> None:
    place.lay_out({"train.py": "print('ran')"})
    other = place.root / "other.json"
    (place.root / "input/data/job/job.json").rename(other)
    assert place.ended(place.start(env={"ORCHESTRATE_JOB": str(other)})).out == b"ran\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"ORCHESTRATE_ROOT": "/no/such folder"},
            "no run here: $ORCHESTRATE_ROOT is '/no/such folder', not a folder, and /opt/ml not SageMaker's",
        ),
        (
            {"CLUSTER_SPEC": "{}"},
            "this is Vertex AI ($CLUSTER_SPEC or $AIP_MODEL_DIR is set), which is not supported yet",
        ),
        ({}, "no run here: $ORCHESTRATE_ROOT is '', not a folder, and /opt/ml not SageMaker's"),
    ],
)
def test_without_a_root_one_line_says_so(environment: dict[str, str], expected: str) -> None:
    if bootstrap.SAGEMAKER_ROOT.exists():
        pytest.skip("this machine has an /opt/ml")
    done = subprocess.run([sys.executable, str(BOOTSTRAP)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"[orchestrate] error: {expected}\n")


def test_a_host_that_is_no_host_of_the_run_is_refused(place: Place) -> None:
    place.lay_out(SHOW)
    place.write("input/config/resourceconfig.json", {"hosts": ["algo-1", "algo-2"], "current_host": "algo-3"})
    ended = place.ended(place.start())
    assert (ended.code, ended.failure) == (2, "this host, 'algo-3', is not among the hosts ['algo-1', 'algo-2']")


def command(hosts: list[str], host: str, processes: int, environment: dict[str, str]) -> list[str]:
    job = {"script": "-t.py", "hyperparameters": {}, "arguments": ["a"], "processes": processes, "grace_seconds": 0.5}
    resources = {"hosts": hosts, "current_host": host, "network_interface_name": "eth7"}
    return bootstrap.script_command("python", job, resources, environment)


def test_several_hosts_meet_at_the_first() -> None:
    environment = {"SM_NUM_CPUS": "8"}
    place = ["--nnodes=2", "--node-rank=1", "--nproc-per-node=3", "--master-addr=algo-1", "--master-port=7777"]
    words = command(["algo-1", "algo-2"], "algo-2", 3, environment)
    assert words == ["python", "-u", "-m", "torch.distributed.run", *place, "./-t.py", "a"]
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["GLOO_SOCKET_IFNAME"] == "eth7"
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "1"


def test_one_host_meets_itself_and_what_the_user_set_stays() -> None:
    environment = {"SM_NUM_CPUS": "2", "OMP_NUM_THREADS": "7"}
    words = command(["algo-1"], "algo-1", 4, environment)
    assert "--master-addr=127.0.0.1" in words
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["GLOO_SOCKET_IFNAME"].startswith("lo")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_cpus_are_counted_by_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(64), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert bootstrap.cpu_count(tmp_path) == expected


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'GPU 0: Tesla T4 (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: Tesla T4 (UUID: y)'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert bootstrap.gpu_count() == 2
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert bootstrap.gpu_count() == 0


FAILED_WORKER = """[rank0]: Traceback (most recent call last):
[rank0]:   File "t.py", line 1, in <module>
[rank0]: ConnectionError: the other rank is gone
[rank1]: Traceback (most recent call last):
[rank1]:   File "/x/torch/distributed/elastic/y.py", line 1, in <module>
[rank1]: ValueError: the reason
"""
OF_TORCHRUN = {
    "torch 2.14": """W1122 15:33:01.1 77 torch/distributed/elastic/m/api.py] Sending process 78 closing signal SIGTERM
E1122 15:33:02.1 77 torch/distributed/elastic/m/api.py] failed (exitcode: -6) local_rank: 1 (pid: 79) of binary: /x/python
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
""",
    "torch 2.0": """WARNING:torch.distributed.elastic.multiprocessing.api:Sending process 78 closing signal SIGTERM
ERROR:torch.distributed.elastic.multiprocessing.api:failed (exitcode: -6) local_rank: 1 (pid: 79) of binary: /x/python
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
""",
}


@pytest.mark.parametrize("told", OF_TORCHRUN.values(), ids=OF_TORCHRUN.keys())
def test_of_what_torchrun_tells_the_first_workers_error_is_kept(told: str) -> None:
    outcome = bootstrap.without_torchrun(bootstrap.Outcome(1, FAILED_WORKER + told, 0), first_rank=0)
    assert outcome.code == 134
    assert outcome.stderr.endswith("ValueError: the reason")
    assert outcome.stderr.startswith("Traceback")
    elsewhere = bootstrap.without_torchrun(bootstrap.Outcome(1, FAILED_WORKER + told, 0), first_rank=8)
    assert elsewhere.stderr == FAILED_WORKER
