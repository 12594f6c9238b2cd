"""What a container of a rehearsal is: its own view of the machine, hosts that meet, and nothing left when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from orchestrator.rehearsal import container, hosts, runner
from orchestrator.rehearsal.hosts import place_of
from tests.bootstrap.test_requirements import OFFLINE, wheel
from tests.conftest import REPOSITORY, wait_until
from tests.rehearsal import jobs
from tests.rehearsal.jobs import BUCKET, Cloud, channel, host_root, job_order, processes_of, run, start, with_bootstrap

pytestmark = pytest.mark.slow

moto_cloud, each_level = jobs.moto_cloud, jobs.each_level


@pytest.fixture
def namespaces() -> str:
    if runner.best_level() != container.NAMESPACES:
        pytest.skip("this kernel does not let this user make namespaces")
    return container.NAMESPACES


def two(**fields: object) -> dict[str, object]:
    return {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 30, **fields}


def lines_by_host(cloud: Cloud, job: str) -> dict[str, list[str]]:
    return {stream.split("/")[1].rpartition("-")[0]: cloud.lines(stream) for stream in cloud.streams(job)}


def test_a_container_is_the_first_process_of_a_machine_of_its_own(
    moto_cloud: Cloud, tmp_path: Path, namespaces: str
) -> None:
    existed = Path("/opt/ml").exists()
    script = (
        'echo $$ $(uname -n) $(id -u); ls /proc | grep -c "^[0-9]"; ls -d /opt/*; cat /etc/hosts; touch /opt/ml/model/m'
    )
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script], level=namespaces)
    assert run(order).kind == "completed"
    first, processes, *rest = moto_cloud.lines(moto_cloud.streams(order.name)[0])
    assert first == "1 algo-1 0"
    assert int(processes) < 6
    assert {"/opt/ml", *map(str, Path("/opt").iterdir())} <= set(rest)
    assert any(line.startswith("127.") and line.endswith(" algo-1") for line in rest)
    assert Path("/opt/ml").exists() == existed
    made = host_root(order) / "model/m"
    assert (made.stat().st_uid, made.stat().st_gid) == (os.geteuid(), os.getegid())


@pytest.mark.slow
def test_what_a_job_installs_goes_away_with_its_container(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    files: dict[str, str | bytes] = {
        "train.py": "import tiny_rehearsed; print('version', tiny_rehearsed.__version__)",
        "requirements.txt": OFFLINE + "tiny_rehearsed\n",
        **wheel("tiny_rehearsed", "1.5"),
    }
    order = with_bootstrap(moto_cloud, tmp_path, files, level=each_level)
    ending = run(order)
    assert ending.kind == "completed", ending
    assert "version 1.5" in moto_cloud.lines(moto_cloud.streams(order.name)[0])
    sites = [Path(path) for path in sys.path if path.endswith("-packages")]
    assert sites
    assert not [found for site in sites for found in site.glob("tiny_rehearsed*")]


def test_the_callers_keys_are_not_seen_in_a_container(
    moto_cloud: Cloud, tmp_path: Path, namespaces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "caller"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    order = job_order(moto_cloud, tmp_path / "job", ["/bin/cat", str(home / ".aws/credentials")], level=namespaces)
    assert run(order).exit_codes == (1,)
    assert "No such file" in moto_cloud.lines(moto_cloud.streams(order.name)[0])[0]


def test_hosts_know_and_reach_each_other(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    """Over the port that torchrun uses. At level "folder" a host's name is an address."""
    script = """if True:
        import json, os, pathlib, socket, sys, time
        config = json.loads(pathlib.Path(sys.argv[1], "input/config/resourceconfig.json").read_text())
        here, hosts = config["current_host"], config["hosts"]
        if here == hosts[0]:
            server = socket.create_server((here, 7777))
            other, address = server.accept()
            print("met", other.recv(100).decode())
        else:
            for _ in range(400):
                try:
                    with socket.create_connection((hosts[0], 7777)) as other:
                        other.sendall(here.encode())
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            print("called", hosts[0])
    """
    order = job_order(
        moto_cloud, tmp_path, ["python3", "-u", "-c", script, "/opt/ml"], level=each_level, ResourceConfig=two()
    )
    ending = run(order)
    assert (ending.kind, ending.exit_codes) == ("completed", (0, 0))
    lines = lines_by_host(moto_cloud, order.name)
    if each_level == container.NAMESPACES:
        assert lines == {"algo-1": ["met algo-2"], "algo-2": ["called algo-1"]}
    else:
        assert lines["algo-1"][0].startswith("met 127.")
        assert lines["algo-2"][0].startswith("called 127.")


def test_two_jobs_of_two_hosts_use_the_same_port_at_once(moto_cloud: Cloud, tmp_path: Path, namespaces: str) -> None:
    script = """if True:
        import os, pathlib, socket, time
        if socket.gethostname() == "algo-1":
            with socket.create_server(("", 7777)):
                pathlib.Path("/opt/ml/output/data/bound").touch()
                while not pathlib.Path("/opt/ml/input/config/go").exists():
                    time.sleep(0.02)
    """
    orders = [
        job_order(moto_cloud, tmp_path / name, ["python3", "-c", script], level=namespaces, ResourceConfig=two())
        for name in ("one", "other")
    ]
    started = [start(order) for order in orders]
    wait_until(lambda: all((host_root(order) / "output/data/bound").exists() for order in orders))
    for order in orders:
        (host_root(order) / "input/config/go").touch()
    assert [one.ended().exit_codes for one in started] == [(0, 0), (0, 0)]


def test_a_network_of_its_own_still_reaches_the_loopback_aws_unless_isolated(
    moto_cloud: Cloud, tmp_path: Path, namespaces: str
) -> None:
    script = f"import boto3; print('{BUCKET}' in [b['Name'] for b in boto3.client('s3').list_buckets()['Buckets']])"
    order = job_order(moto_cloud, tmp_path / "a", ["python3", "-c", script], level=namespaces, ResourceConfig=two())
    assert run(order).exit_codes == (0, 0)
    assert lines_by_host(moto_cloud, order.name) == {f"algo-{n}": ["True"] for n in (1, 2)}

    host, port = runner.endpoint_address(moto_cloud.endpoint)
    reach = f"import os, socket; print('AWS_ACCESS_KEY_ID' in os.environ); socket.create_connection(('{host}', {port}))"
    order = job_order(
        moto_cloud, tmp_path / "b", ["python3", "-u", "-c", reach], level=namespaces, EnableNetworkIsolation=True
    )
    assert run(order).exit_codes == (1,)
    lines = moto_cloud.lines(moto_cloud.streams(order.name)[0])
    assert (lines[0], lines[-1]) == ("False", "ConnectionRefusedError: [Errno 111] Connection refused")


def test_one_host_that_fails_ends_the_others(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    script = (
        'trap \'echo told; exit 9\' TERM; grep -q \'"current_host": "[^"]*\\(algo-2\\|[.]3\\)"\' '
        "/opt/ml/input/config/resourceconfig.json && { echo bad > /opt/ml/output/failure; sleep 0.5; exit 4; }; "
        "sleep 60 & wait"
    )
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script], level=each_level, ResourceConfig=two())
    ending = run(order)
    assert (ending.kind, ending.exit_codes) == ("failed", (9, 4))
    assert ending.failure_reason == "AlgorithmError: bad\n, exit code: 4"
    assert lines_by_host(moto_cloud, order.name) == {"algo-1": ["told"], "algo-2": []}


def test_objects_are_split_between_hosts_or_given_to_each(moto_cloud: Cloud, tmp_path: Path) -> None:
    for name in "abc":
        moto_cloud.put(f"split/{name}", name)
    inputs = [
        channel("shards", f"s3://{BUCKET}/split/", S3DataDistributionType="ShardedByS3Key"),
        channel("whole", f"s3://{BUCKET}/split/", InputMode="FastFile"),
        channel("own", f"s3://{BUCKET}/split/"),
    ]
    script = (
        "echo more >> /opt/ml/input/data/own/a; echo more >> /opt/ml/input/data/whole/a; cat /opt/ml/input/data/own/a"
    )
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script], ResourceConfig=two(), InputDataConfig=inputs)
    run(order)

    def seen(host: str, name: str) -> dict[str, str]:
        folder = host_root(order, host) / "input/data" / name
        return {path.name: path.read_text() for path in sorted(folder.iterdir())}

    assert seen("algo-1", "shards") == {"a": "a", "c": "c"}
    assert seen("algo-2", "shards") == {"b": "b"}
    for host in ("algo-1", "algo-2"):
        assert seen(host, "own") == {"a": "amore\n", "b": "b", "c": "c"}
        if runner.best_level() == container.NAMESPACES:  # elsewhere nothing keeps a script from writing there
            assert seen(host, "whole") == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize(
    ("key", "prefix", "place"),
    [
        ("data/a/b", "data/", "a/b"),
        ("data/a/b", "data", "a/b"),
        ("data/part-1", "data/part", "part-1"),
        ("data/one.csv", "data/one.csv", "one.csv"),
        ("x", "", "x"),
    ],
)
def test_a_prefix_is_stripped_up_to_its_last_folder(key: str, prefix: str, place: str) -> None:
    assert place_of(key, prefix) == place


def test_a_key_cannot_lead_out_of_its_channel() -> None:
    with pytest.raises(hosts.Failed, match="cannot be a file's name"):
        place_of("data/../../../etc/passwd", "data/")


def test_a_folder_whose_name_needs_quoting_works_too(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    folder = tmp_path / "a 'job', in: \"é\" \\ $HOME;"
    script = "echo m > /opt/ml/model/m && cat '/opt/ml/model/m'"
    order = job_order(moto_cloud, folder, ["/bin/sh", "-c", script], level=each_level)
    assert run(order).kind == "completed"
    assert moto_cloud.lines(moto_cloud.streams(order.name)[0]) == ["m"]
    assert moto_cloud.unpacked(f"out/{order.name}/output/model.tar.gz") == {"m": b"m\n"}


@pytest.mark.parametrize("victim", ["launcher", "keeper"])
def test_killing_what_holds_a_container_fails_the_job_and_leaves_nothing(
    moto_cloud: Cloud, tmp_path: Path, namespaces: str, victim: str
) -> None:
    script = "setsid sleep 300 & touch /opt/ml/output/data/on; sleep 300; echo"
    order = job_order(moto_cloud, tmp_path, ["/bin/bash", "-c", script], level=namespaces)
    started = start(order)
    wait_until(lambda: (host_root(order) / "output/data/on").exists())
    (launcher,) = [one for one in psutil.Process().children() if container.__file__ in one.cmdline()]
    (launcher if victim == "launcher" else launcher.children()[0]).send_signal(signal.SIGKILL)
    ending = started.ended()
    assert ending.kind == "failed"
    assert ending.failure_reason is not None
    assert ending.failure_reason.startswith(
        "InternalServerError: " if victim == "launcher" else "AlgorithmError: , exit"
    )
    wait_until(lambda: not processes_of(tmp_path))


def test_an_ordinary_user_has_the_same_containers(moto_cloud: Cloud, tmp_path: Path, namespaces: str) -> None:
    """Run as somebody who owns nothing but the job's folder."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become somebody else; the other tests have run as an ordinary user then")
    place = Path("/tmp") / f"rehearsal-of-nobody-{os.getpid()}"
    place.mkdir()
    os.chown(place, 65534, 65534)
    shutil.copytree(REPOSITORY / "orchestrator", place / "orchestrator", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import sys; from orchestrator.rehearsal import hosts, runner, container; from pathlib import Path; import os\n"
        "folder = Path(sys.argv[1]) / 'job'\n"
        "request = {'TrainingJobName': 'n', 'ResourceConfig': {'InstanceCount': 2, 'InstanceType': 't'}, "
        "'AlgorithmSpecification': {'ContainerEntrypoint': ['/bin/sh', '-c', "
        "'echo $(id -u) $$ $(uname -n) > /opt/ml/model/m']}}\n"
        "machines = hosts.plan_hosts(request, folder)\n"
        "hosts.lay_out(machines, request, {host.name: host.name for host in machines})\n"
        "one = runner.Runner(runner.JobOrder('n', '', '', request, folder, 'http://127.0.0.1:1', level='namespaces'), None)\n"
        "orders = one._container_orders(machines, [host.root for host in machines])\n"
        "with container.Containers(orders, ('127.0.0.1', 1), folder) as running:\n"
        "    print(one._watch(running, 2), os.getuid(), [(host.root / 'model/m').read_text() for host in machines])\n"
    )
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python = shutil.which("python3", path="/usr/bin:/bin")
    try:
        if (
            not python
            or subprocess.run([*words, python, "-c", "import sys; assert sys.version_info >= (3, 11)"]).returncode
        ):
            python = sys.executable
        if subprocess.run([*words, python, "-c", ""], capture_output=True).returncode:
            pytest.skip("no Python that everybody may run")
        done = subprocess.run(
            [*words, python, "-c", program, str(place)], cwd=place, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "completed 65534 ['0 1 algo-1\\n', '0 1 algo-2\\n']\n", done.stderr
    finally:
        shutil.rmtree(place)


class FlakyLogs:
    """CloudWatch Logs that takes every third call."""

    class exceptions:  # noqa: N801 (as boto3 has it)
        ResourceAlreadyExistsException = KeyError

    def __init__(self) -> None:
        self.calls, self.lines = 0, []  # type: ignore[var-annotated]

    def create_log_group(self, **_: str) -> None:
        raise KeyError

    def create_log_stream(self, **_: str) -> None:
        pass

    def put_log_events(self, *, logEvents: list[dict[str, object]], **_: str) -> None:  # noqa: N803 (as boto3 has it)
        from botocore.exceptions import ClientError

        self.calls += 1
        if self.calls % 3:
            raise ClientError({"Error": {"Code": "ThrottlingException"}}, "PutLogEvents")
        assert len(logEvents) <= 10_000
        assert sum(len(str(event["message"]).encode()) + 26 for event in logEvents) <= 1_048_576
        self.lines += [event["message"] for event in logEvents]


def test_a_log_service_that_refuses_most_calls_loses_and_repeats_nothing() -> None:
    logs = FlakyLogs()
    reader, writer = os.pipe()
    with runner.LogShipper(logs, "job") as shipper:
        shipper.follow("algo-1", reader)
        with os.fdopen(writer, "w") as out:
            out.writelines(f"{n} {'x' * 1000}\n" for n in range(3_000))
    assert [line.split()[0] for line in logs.lines] == [str(n) for n in range(3_000)]
    assert logs.calls >= 9


def test_tensorboards_files_are_copied_as_they_grow(moto_cloud: Cloud, tmp_path: Path) -> None:
    order = job_order(
        moto_cloud,
        tmp_path,
        [
            "/bin/bash",
            "-c",
            "trap 'exit 0' TERM; while echo more >> /opt/ml/output/tensorboard/events; do sleep 0.1; done",
        ],
        TensorBoardOutputConfig={"S3OutputPath": f"s3://{BUCKET}/boards/"},
    )
    started = start(order)
    wait_until(lambda: moto_cloud.keys(f"boards/{order.name}/tensorboard-output/") == ["events"])
    assert not started.endings
    started.runner.stop()
    assert started.ended().kind == "stopped"


@pytest.mark.slow
def test_two_hosts_train_together_over_gloo(moto_cloud: Cloud, tmp_path: Path, each_level: str) -> None:
    script = """
        import os, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        value = torch.tensor([float(dist.get_rank() + 1)])
        dist.all_reduce(value)
        print(f"[metrics] world={dist.get_world_size()} total={value.item()}", flush=True)
        dist.destroy_process_group()
    """
    order = with_bootstrap(moto_cloud, tmp_path, {"train.py": script}, level=each_level, ResourceConfig=two())
    ending = run(order)
    lines = lines_by_host(moto_cloud, order.name)
    assert (ending.kind, ending.exit_codes) == ("completed", (0, 0)), lines
    for host in ("algo-1", "algo-2"):
        assert "[metrics] world=2 total=3.0" in lines[host]


@pytest.mark.slow
def test_twenty_jobs_at_once_end_and_leave_nothing(moto_cloud: Cloud, tmp_path: Path) -> None:
    before = threading.active_count()
    script = "import sys; [print(n) for n in range(100)]; open('/opt/ml/model/m', 'w').write('m')"
    orders = [job_order(moto_cloud, tmp_path / str(n), ["python3", "-c", script]) for n in range(20)]
    if runner.best_level() != container.NAMESPACES:
        pytest.skip("the script names /opt/ml")
    started = [start(order) for order in orders]
    assert [one.ended().kind for one in started] == ["completed"] * 20
    for order in orders:
        assert moto_cloud.lines(moto_cloud.streams(order.name)[0]) == [str(n) for n in range(100)]
    assert processes_of(tmp_path) == []
    wait_until(lambda: threading.active_count() <= before)
