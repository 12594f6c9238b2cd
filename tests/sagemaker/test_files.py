"""What goes along and what comes back: data uploaded once, archives unpacked, checkpoints, hostile archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from orchestrator.rehearsal import control
from tests.conftest import processes_of, wait_until
from tests.sagemaker.conftest import BUCKET, NAMED, REHEARSED, Cloud, Shell

pytestmark = pytest.mark.slow
READS = """
import os, pathlib
folder = pathlib.Path(os.environ["SM_CHANNEL_ROWS"])
for path in sorted(folder.rglob("*")):
    if path.is_file():
        print("read", path.relative_to(folder), path.read_text())
"""
LEAVES = """
import os, pathlib
pathlib.Path(os.environ["SM_MODEL_DIR"], "deep").mkdir()
pathlib.Path(os.environ["SM_MODEL_DIR"], "deep", "weights.bin").write_bytes(os.urandom(3_000_000))
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "metrics.jsonl").write_text("{}")
pathlib.Path(os.environ["AIP_CHECKPOINT_DIR"], "step-1.pt").write_text("checkpoint")
"""


def puts(shell: Shell, cloud: Cloud, *words: str) -> int:
    """How many objects a submit uploads."""
    before = cloud.calls()["PutObject"]
    answer = shell(*words)
    assert answer.code == 0, answer.err
    return cloud.calls()["PutObject"] - before


def test_a_folder_is_uploaded_once_and_anew_when_its_content_changed(shell: Shell, cloud: Cloud) -> None:
    shell.write(READS)
    rows = shell.project.parent / "rows"  # not in the source folder: it would be part of the package
    (rows / "deep").mkdir(parents=True)
    (rows / "a.csv").write_text(f"{shell.project}")
    (rows / "deep/b with ü.csv").write_text("2")
    words = (*REHEARSED, "--data", f"rows={rows}")
    first = puts(shell, cloud, *words)
    assert f"read a.csv {shell.project}" in shell("logs").out
    assert "read deep/b with ü.csv 2" in shell("logs").out
    assert puts(shell, cloud, *words) == 1  # the job file: it is the run's own
    (rows / "deep/b with ü.csv").write_text("3")
    assert puts(shell, cloud, *words) == first - 2  # bootstrap.py and the package are there
    assert "read deep/b with ü.csv 3" in shell("logs").out
    assert len(cloud.jobs()) == 3


def test_a_channel_in_s3_reaches_the_script(shell: Shell, cloud: Cloud) -> None:
    shell.write(READS)
    prefix = shell.project.parent.name
    cloud.client("s3").put_object(Bucket=BUCKET, Key=f"{prefix}/a.csv", Body=b"from S3")
    answer = shell(*REHEARSED, "--data", f"rows=s3://{BUCKET}/{prefix}/")
    assert answer.code == 0, answer.err
    assert "read a.csv from S3" in answer.out


def test_a_channel_with_nothing_in_it_is_told(shell: Shell, cloud: Cloud) -> None:
    answer = shell(*REHEARSED, "--data", f"rows=s3://{BUCKET}/there-is-nothing-here/")
    assert answer.code in (5, 6), answer.err
    assert f"s3://{BUCKET}/there-is-nothing-here/" in answer.err


def test_what_a_run_left_is_listed_and_brought_here_unpacked(shell: Shell, cloud: Cloud) -> None:
    shell.write(LEAVES)
    assert shell(*NAMED, **cloud.environment).code == 0
    listed = {one["path"]: one for one in shell("artifacts", "--json", **cloud.environment).json["files"]}
    assert set(listed) == {"output/model.tar.gz", "output/output.tar.gz", "checkpoints/step-1.pt"}
    assert listed["checkpoints/step-1.pt"]["place"].startswith(f"s3://{BUCKET}/orchestrate/runs/")
    answer = shell("artifacts", "--to", "out", **cloud.environment)
    assert answer.code == 0, answer.err
    out = shell.project / "out"
    assert files_of(out) == ["model/deep/weights.bin", "output/data/metrics.jsonl"]
    assert (out / "model/deep/weights.bin").stat().st_size == 3_000_000
    both = shell("artifacts", "--to", "all", "--checkpoints", **cloud.environment)
    assert both.code == 0, both.err
    assert (shell.project / "all/checkpoints/step-1.pt").read_text() == "checkpoint"


def test_a_download_that_broke_off_is_gone_on_with(shell: Shell, cloud: Cloud) -> None:
    shell.write(LEAVES)
    assert shell(*NAMED, **cloud.environment).code == 0
    cloud.arm("truncated:GetObject:rate=1")
    broken = shell("artifacts", "--to", "out", **cloud.environment)
    assert broken.code in (5, 75), broken.err
    assert not (shell.project / "out/model").exists()
    cloud.clear()
    answer = shell("artifacts", "--to", "out", **cloud.environment)
    assert answer.code == 0, answer.err
    assert (shell.project / "out/model/deep/weights.bin").stat().st_size == 3_000_000


def test_a_hostile_archive_is_refused_in_one_line_and_nothing_is_written(shell: Shell, cloud: Cloud) -> None:
    assert shell(*NAMED, **cloud.environment).code == 0
    key = f"orchestrate/runs/{shell.run().remote_id}/output/model.tar.gz"
    link = tarfile.TarInfo("inside")
    link.type, link.linkname = tarfile.LNKTYPE, "/etc/passwd"
    for member in (tarfile.TarInfo("../../escaped"), link, tarfile.TarInfo("/tmp/escaped")):
        cloud.client("s3").put_object(Bucket=BUCKET, Key=key, Body=packed(tarfile.TarInfo("good"), member))
        answer = shell("artifacts", "--to", "out", **cloud.environment)
        assert answer.code == 2, answer.err
        (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
        assert "model.tar.gz" in line
        assert files_of(shell.project / "out") == []
    assert not list(shell.project.parent.rglob("escaped"))


def packed(*members: tarfile.TarInfo) -> bytes:
    """A .tar.gz with these empty members."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO())
    return made.getvalue()


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_after_a_rehearsed_cloud_was_stopped_the_model_and_the_lines_are_still_here(shell: Shell, cloud: Cloud) -> None:
    own = shell.project.parent / "another"
    shell.write(LEAVES + "print('said')\n")
    try:
        answer = shell(*REHEARSED, ORCHESTRATE_HOME=str(own))
        assert answer.code == 0, answer.err
        assert control.stop(own / "rehearsal")
        wait_until(lambda: not processes_of(own), what="the end of the server's process")
        for words in (("status",), ("logs",), ("artifacts",), ("artifacts", "--to", "out"), ("list",)):
            told = shell(*words, ORCHESTRATE_HOME=str(own))
            assert told.code == 0, (words, told.err)
        assert "said" in shell("logs", ORCHESTRATE_HOME=str(own)).out
        assert (shell.project / "out/model/deep/weights.bin").stat().st_size == 3_000_000
        assert (shell.project / "out/checkpoints/step-1.pt").exists()
    finally:
        control.stop(own / "rehearsal")


def test_that_a_run_left_nothing_is_known_without_its_cloud(shell: Shell, cloud: Cloud) -> None:
    shell.write("print('nothing')\n")
    assert shell(*REHEARSED).code == 0
    cloud.arm("reset-before:ListObjectsV2:rate=1")
    listed, fetched = shell("artifacts", "--json"), shell("artifacts", "--to", "out")
    assert (listed.code, fetched.code) == (0, 0), listed.err + fetched.err
    assert listed.json["files"] == []
    assert "left no files" in fetched.out


def test_a_run_whose_rehearsed_cloud_was_stopped_meanwhile_is_told_to_have_ended(patient: Shell, cloud: Cloud) -> None:
    own = patient.project.parent / "another"
    try:
        detached = patient(*REHEARSED, "--detach", "--", str(patient.gate), ORCHESTRATE_HOME=str(own))
        assert detached.code == 0, detached.err
        control.stop(own / "rehearsal")
        listed = patient("list", "--json", ORCHESTRATE_HOME=str(own))
        assert listed.code == 0, listed.err
        assert listed.json[0]["state"] in ("abandoned", "stopped")
        assert "rehearsed cloud was stopped" in listed.err
    finally:
        control.stop(own / "rehearsal")


def test_checkpoints_of_an_earlier_run_are_what_the_next_one_begins_with(shell: Shell, cloud: Cloud) -> None:
    shell.write(LEAVES)
    assert shell(*REHEARSED).code == 0
    shell.write(
        "import os, pathlib\n"
        "print('found', sorted(path.name for path in pathlib.Path(os.environ['AIP_CHECKPOINT_DIR']).iterdir()))\n"
    )
    answer = shell(*REHEARSED, "--resume-from", shell.run().id)
    assert answer.code == 0, answer.err
    assert "found ['step-1.pt']" in answer.out


def test_data_that_left_the_bucket_is_uploaded_again_before_the_next_run(shell: Shell, cloud: Cloud) -> None:
    shell.write(READS)
    rows = shell.project.parent / "rows"
    rows.mkdir()
    for name in ("a.csv", "b.csv"):
        (rows / name).write_text(f"{name} of {shell.project}")
    words = (*REHEARSED, "--data", f"rows={rows}")
    puts(shell, cloud, *words)
    listed = cloud.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="orchestrate/data/")["Contents"]
    (gone,) = [
        one["Key"] for one in listed if one["Key"].endswith("/a.csv") and one["Size"] == (rows / "a.csv").stat().st_size
    ]
    cloud.client("s3").delete_object(Bucket=BUCKET, Key=gone)
    assert shell(*words).code == 0
    assert f"read a.csv a.csv of {shell.project}" in shell("logs").out


def test_a_model_with_links_in_it_comes_back_and_its_run_is_a_success(shell: Shell, cloud: Cloud) -> None:
    shell.write(
        "import os, pathlib\n"
        "model, output = pathlib.Path(os.environ['SM_MODEL_DIR']), pathlib.Path(os.environ['SM_OUTPUT_DATA_DIR'])\n"
        "(model / 'm.txt').write_text('weights')\n"
        "(model / 'latest').symlink_to('m.txt')\n"
        "(model / 'hub').symlink_to('/root/.cache/hub/x')\n"
        "(output / 'run-1').mkdir()\n"
        "(output / 'run-1/log').write_text('log')\n"
        "(output / 'latest-run').symlink_to('run-1')\n"
    )
    answer = shell(*NAMED, **cloud.environment)
    assert answer.code == 0, answer.err
    brought = shell("artifacts", "--to", "out", **cloud.environment)
    assert brought.code == 0, brought.err
    assert files_of(shell.project / "out") == ["model/latest", "model/m.txt", "output/data/run-1/log"]
    assert (shell.project / "out/model/latest").read_text() == "weights"
    told = [line for line in brought.err.splitlines() if "were left out" in line]
    assert len(told) == 2
    assert "'hub'" in told[0]
    assert "'latest-run'" in told[1]


def test_a_rehearsed_run_whose_archive_is_not_unpacked_here_is_a_success(shell: Shell, cloud: Cloud) -> None:
    shell.write(
        "import os, pathlib\n"
        "for name in ('Model.pt', 'model.pt'):\n"
        "    pathlib.Path(os.environ['SM_MODEL_DIR'], name).write_text('weights')\n"
        "pathlib.Path(os.environ['SM_OUTPUT_DATA_DIR'], 'rows.csv').write_text('1')\n"
    )
    answer = shell(*REHEARSED)
    assert answer.code == 0, answer.err
    assert "model.tar.gz" in answer.err
    assert shell("artifacts", "--to", "out").code == 0
    assert files_of(shell.project / "out") == ["model/model.tar.gz", "output/data/rows.csv"]
