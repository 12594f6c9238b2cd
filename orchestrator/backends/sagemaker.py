"""Run on Amazon SageMaker: a training job made once, followed, stopped and collected. boto3 alone; see docs/design.md."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from estimates import cost
from orchestrator import bundled, crashpoints, money, state
from orchestrator.aws import collecting, explain, following, jobs
from orchestrator.aws.client import Aws, shared
from orchestrator.aws.explain import Kind
from orchestrator.aws.jobs import told
from orchestrator.aws.transfer import Bucket
from orchestrator.backends import Advance, Artifact, Interruption, Progress
from orchestrator.backends.files import copy_artifacts
from orchestrator.errors import Conflict, OrchestrateError, OutcomeUnknown, raise_all
from orchestrator.plan import Plan
from orchestrator.runs import Ledger, Run, RunState

UNSENT = (RunState.CREATED, RunState.PACKAGED, RunState.UPLOADED)
STOP_PATIENCE_SECONDS = 20.0


def say(line: str) -> None:
    """Tell on stderr what the cloud does to us, on a line of its own: the status line of a terminal gives way."""
    begin = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{begin}[orchestrate] {printable(line)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


class InTheCloud:
    """A job that goes on whatever becomes of this command."""

    def __init__(self, run: Run, *, cancel_on_interrupt: bool, cancel: Callable[[], None]) -> None:
        self._run, self._cancels, self._cancel = run, cancel_on_interrupt, cancel

    def let_go(self) -> None:
        pass

    def close(self) -> None:
        pass

    def interrupted(self, times: int) -> Interruption:
        with Ledger.open_to_read(state.ledger_file()) as ledger:
            run = ledger.get(self._run.id)  # it may have begun to train meanwhile
        if self._cancels and times == 1:
            self._cancel()
            return Interruption(f"stopping {run.id}: it has {run.plan['limits']['grace_seconds']} s to save")
        if times > 1:
            return Interruption(f"{run.id} goes on; orchestrate logs {run.id} --follow   shows it again", leaves=True)
        words = f"{run.id} goes on in the cloud: {_hourly(run)}, stopped {_latest(run)}"
        return Interruption(f"{words}. To stop it: orchestrate cancel {run.id}   Ctrl-C again leaves")


def _hourly(run: Run) -> str:
    usd = money.usd_per_hour(run.plan)
    if usd is None:
        return "its price is unknown"
    words = f"{cost.format_usd(usd)} an hour"
    return f"it would cost {words} (a rehearsal costs nothing)" if run.rehearsed else f"it costs {words}"


def _latest(run: Run) -> str:
    seconds = run.plan["cloud"]["max_wait_seconds"] or run.plan["cloud"]["max_seconds"]
    if run.started_at is None:
        return f"by SageMaker after {seconds / 3600:.3g} h of running at the latest"
    latest = datetime.fromisoformat(run.started_at).astimezone(UTC) + timedelta(seconds=seconds)
    return f"by SageMaker at {latest:%H:%M} UTC ({latest:%Y-%m-%d}) at the latest"


class SageMakerBackend:
    """The Backend of SageMaker, or of whatever speaks its language at the plan's endpoint."""

    cancel_on_interrupt = False

    def request(self, plan: Plan) -> dict[str, Any]:
        """Exactly what `create_training_job` will be sent. Raises everything that the service would refuse."""
        from orchestrator.aws import request, rules

        made = request.training_job(plan, bootstrap_digest())
        assert plan.cloud is not None
        raise_all(rules.check_training_job(made, region=plan.cloud.region, account=plan.cloud.account))
        return made

    def submit(
        self,
        run: Run,
        request: Mapping[str, Any],
        archive: Path,
        channels: Mapping[str, Path],
        advance: Advance,
        progress: Progress | None = None,
    ) -> InTheCloud:
        """Upload what goes along, by content, and have the job made, once. May be called again at any point of it."""
        with self._aws(run) as aws, told("submit the run", _context(run)):
            jobs.check_account(aws, run.plan["cloud"]["account"])
            crashpoints.reached("login checked")
            cut_short = run.state == RunState.STARTING
            if cut_short and jobs.is_there(aws, request, run_id=run.id):
                advance(RunState.ACCEPTED, note="the job was there already: its answer had been lost")
                return self.hold(run)
            bucket = self._bucket(run, aws)
            bucket.check(aws.region)
            crashpoints.reached("bucket checked")
            self._upload(run, request, archive, channels, bucket, progress)
            advance(RunState.UPLOADED)
            crashpoints.reached("uploaded written")
            advance(RunState.STARTING)
            crashpoints.reached("starting written")
            try:
                made = jobs.create_once(aws, request, run_id=run.id, tell=say, unclear=cut_short)
            except OutcomeUnknown:
                raise  # it stays `starting`, for `orchestrate resume`
            except OrchestrateError as error:
                advance(RunState.ABANDONED, note=f"not started: {error.what}")
                raise
            name = request["TrainingJobName"]
            advance(RunState.ACCEPTED, note=None if made else f"{name} was there already, and is this run's")
            crashpoints.reached("accepted written")
        return self.hold(run)

    def hold(self, run: Run) -> InTheCloud:
        """This command's hold on a run that the cloud has."""
        stop = lambda: self.cancel(run, grace_seconds=0, reason="Ctrl-C")  # noqa: E731 - said once, done once
        return InTheCloud(run, cancel_on_interrupt=self.cancel_on_interrupt, cancel=stop)

    def _upload(
        self,
        run: Run,
        request: Mapping[str, Any],
        archive: Path,
        channels: Mapping[str, Path],
        bucket: Bucket,
        progress: Progress | None,
    ) -> None:
        uris = {one["ChannelName"]: one["DataSource"]["S3DataSource"]["S3Uri"] for one in request["InputDataConfig"]}
        code = key_of(uris["code"])
        bucket.put(bundled.bootstrap_file(), f"{code}bootstrap.py", progress=progress)
        crashpoints.reached("bootstrap uploaded")
        bucket.put(archive, f"{code}package.tar.gz", progress=progress)
        crashpoints.reached("package uploaded")
        for name, folder in channels.items():
            collecting.send_folder(bucket, folder, key_of(uris[name]), state.packages_dir(), progress)
        crashpoints.reached("data uploaded")
        checkpoints = run.plan.get("checkpoints_from")
        if checkpoints is not None:
            collecting.send_checkpoints(bucket, checkpoints, key_of(request["CheckpointConfig"]["S3Uri"]), progress)
        crashpoints.reached("checkpoints copied")
        job = json.dumps(run.plan["job"], ensure_ascii=False, indent=1).encode()
        bucket.put(job, f"{key_of(uris['job'])}job.json")
        crashpoints.reached("job file uploaded")

    def refresh(self, run: Run, ledger: Ledger) -> Run:
        """The run as SageMaker tells it. Raises what keeps it from being asked: LoginNeeded, CloudRefused."""
        if run.ended or run.state in UNSENT or state.is_held(Path(run.run_dir) / state.SUBMIT_LOCK):
            return run
        cloud = run.plan["cloud"]
        with told(f"ask for {run.remote_id}", _context(run)):
            return following.look(shared(cloud["region"], run.endpoint, cloud["profile"]), run, ledger)

    def logs(self, run: Run, *, follow: bool) -> Iterator[bytes]:
        if run.state in UNSENT:
            return
        with self._aws(run) as aws:
            yield from following.output(aws, run, follow=follow, tell=say)

    def artifacts(self, run: Run) -> list[Artifact]:
        here = collecting.collected(run)
        if here is not None or run.state in UNSENT:
            return here or []
        with self._aws(run) as aws, told("list the run's files", _context(run)):
            return collecting.listed(self._bucket(run, aws), run)

    def collect(
        self, run: Run, folder: Path, *, checkpoints: bool = False, progress: Progress | None = None
    ) -> list[Path]:
        """Download what the run left, verified, and unpack it into *folder* as a local run keeps it: model/, output/data/."""
        with state.locked(Path(run.run_dir) / "download.lock"):  # two that download at once would share half a file
            here = collecting.collected(run)
            if here is not None:
                return copy_artifacts(here, folder)
            with self._aws(run) as aws, told("fetch the run's files", _context(run)):
                bucket = self._bucket(run, aws)
                made = collecting.fetched(bucket, run, folder, checkpoints=checkpoints, progress=progress)
            if folder == collecting.root_of(run):
                collecting.keep(run, made)
            return made

    def cancel(self, run: Run, *, grace_seconds: int, reason: str) -> None:
        """StopTrainingJob; the service gives the script its 120 s. A job that has just ended is no fault."""
        sent = tuple(one for one in RunState if one not in UNSENT)
        with Ledger.open(state.ledger_file()) as ledger:  # which knows it as it is by now, whenever *run* was read
            if ledger.move(
                run.id, RunState.ABANDONED, note=f"{reason}: nothing had been sent to the cloud", unless=sent
            ):
                return
            run = ledger.get(run.id)
        if run.ended:
            return
        name = str(run.remote_id)
        with self._aws(run) as aws, told(f"stop {name}", _context(run)):
            described = self._awaited(run, aws, reason)
            if described is None:
                jobs.check_account(aws, run.plan["cloud"]["account"])
                return
            if run.request is not None and not jobs.is_ours(described, run.request):
                raise Conflict(f"{name} is not this run's job", hint="nothing was touched")
            try:
                aws.client("sagemaker").stop_training_job(TrainingJobName=name)
            except Exception as error:
                if explain.classify(error) is not Kind.INVALID:  # it has ended meanwhile
                    raise
            with Ledger.open(state.ledger_file()) as ledger:
                ledger.move(run.id, RunState.STOPPING, note=reason, unless=(RunState.STOPPING,))

    def _awaited(self, run: Run, aws: Aws, reason: str) -> dict[str, Any] | None:
        """The job; of a submit that was cut short at its create call, after a while in which it may still come up."""
        deadline = time.monotonic() + STOP_PATIENCE_SECONDS * jobs.pace_of(aws.endpoint)
        while (described := jobs.describe(aws, str(run.remote_id))) is None and run.state == RunState.STARTING:
            if time.monotonic() > deadline:
                if state.is_held(Path(run.run_dir) / state.SUBMIT_LOCK):
                    what = f"{run.id} is being submitted by another command, and its job is not there yet"
                    raise OutcomeUnknown(what, hint=f"orchestrate cancel {run.id}   once more")
                jobs.check_account(aws, run.plan["cloud"]["account"])
                with Ledger.open(state.ledger_file()) as ledger:
                    ledger.move(
                        run.id, RunState.ABANDONED, note=f"{reason}: its submit had been cut short, and no job was made"
                    )
                break
            time.sleep(jobs.pace_of(aws.endpoint))
        return described

    def session(self, run: Run) -> Any:
        """The boto3 session that reaches *run*, for whoever wants to go on with AWS's own tools."""
        cloud = run.plan["cloud"]
        return session_of(cloud["region"], endpoint=run.endpoint, profile=cloud["profile"])

    def _aws(self, run: Run) -> Aws:
        cloud = run.plan["cloud"]
        return Aws(cloud["region"], endpoint=run.endpoint, profile=cloud["profile"])

    def _bucket(self, run: Run, aws: Aws) -> Bucket:
        cloud = run.plan["cloud"]
        return Bucket(aws, cloud["bucket"], cloud["account"], kms_key=cloud["kms_key"])


def _context(run: Run) -> dict[str, str]:
    """What the explanation of a refusal may name."""
    cloud = run.plan["cloud"]
    known = {name: cloud.get(name) for name in ("role", "bucket", "region", "profile", "kms_key", "image")}
    known |= {"run": run.id, "job": run.remote_id, "instance": run.spec.get("instance")}
    return {name: str(value) for name, value in known.items() if value}


def session_of(region: str, *, endpoint: str | None, profile: str | None) -> Any:
    """A boto3 session of a login, or one whose every client calls *endpoint*, whatever a library asks of it."""
    import boto3
    import botocore.session
    from botocore.config import Config

    if endpoint is None:
        return boto3.Session(profile_name=profile, region_name=region)
    ours = Config(s3={"addressing_style": "path"}, proxies={})

    class Loopback(boto3.Session):  # type: ignore[misc]
        def client(self, *words: Any, **options: Any) -> Any:
            given = options.get("config")
            changes = {"endpoint_url": endpoint, "config": given.merge(ours) if given else ours}
            return super().client(*words, **{**options, **changes})

    nothing = {"profile": None, "config_file": os.devnull, "credentials_file": os.devnull}  # of the user's is read
    core = botocore.session.Session(session_vars={name: (None, None, value, None) for name, value in nothing.items()})
    return Loopback("rehearsal", "rehearsal", region_name=region, botocore_session=core)


def bootstrap_digest() -> str:
    """The SHA-256 of the bootstrap.py that goes along."""
    return hashlib.sha256(bundled.bootstrap_file().read_bytes()).hexdigest()


def key_of(uri: str) -> str:
    """The key in `s3://bucket/key`."""
    return uri.removeprefix("s3://").partition("/")[2]


def sync(region: str, ledger: Ledger, *, endpoint: str | None, profile: str | None) -> list[str]:
    """Bring jobs that carry our tags, and that this ledger does not know, into it; returns their run ids."""
    from orchestrator.aws import syncing

    with Aws(region, endpoint=endpoint, profile=profile) as aws, told("list training jobs"):
        return syncing.bring_in(aws, ledger, rehearsed=endpoint is not None)
