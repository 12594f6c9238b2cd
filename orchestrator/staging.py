"""What a cloud's run needs around it: where its data will lie, and, for a rehearsal, a cloud on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from estimates import catalog, pricebook
from orchestrator import books, plan, samples, state
from orchestrator.aws import place as places
from orchestrator.aws.place import AwsPlace
from orchestrator.backends import Progress
from orchestrator.errors import BadInput, OrchestrateError
from orchestrator.spec import Pairs, TrainingSpec


def loopback_account(region: str | None) -> places.Stage:
    """The account of a rehearsal, for whoever names no role and bucket of their own."""
    from orchestrator.rehearsal import control

    where = region or catalog.DEFAULT_REGION["sagemaker"]
    return places.Stage(role=control.role_arn(where), bucket=control.bucket_of(where), region=where)


class Stage:
    """The surroundings of one submit: its rehearsed cloud, started once, and its data, looked through once."""

    def __init__(self, place: AwsPlace | None, *, fetch: bool, faults: Sequence[str] = ()) -> None:
        self._digests: dict[str, str] = {}
        self.endpoint: str | None = None
        self.level: str | None = None  # how near to a container the rehearsed cloud comes on this machine
        if fetch and place is not None and place.rehearsed:
            from orchestrator.rehearsal import control

            url = control.ensure(state.home() / "rehearsal").url
            standing = control.call(url, "GET", "state")
            self.level = standing["level"]
            if faults:
                control.call(url, "DELETE", "faults")
                control.call(url, "POST", "faults", list(faults))
            elif armed := standing["faults"]:
                print(f"note: the rehearsed cloud has faults armed from before: {', '.join(armed)}", file=sys.stderr)
            self.endpoint = control.provision(url, role=place.role, bucket=place.bucket, region=place.region)

    def set(self, place: AwsPlace | None) -> AwsPlace | None:
        """*place* with the address of the cloud that it is in."""
        return None if place is None else dataclasses.replace(place, endpoint=self.endpoint)

    def data_folders(self, channels: Pairs) -> dict[str, Path]:
        """The folder of each channel that is filled from here; samples are fetched."""
        found = {}
        for name, location in channels:
            if location.startswith(plan.SAMPLE):
                found[name] = samples.fetch(location.removeprefix(plan.SAMPLE))
            elif "://" not in location:
                found[name] = Path(location)
        return found

    def data_uris(self, place: AwsPlace, channels: Pairs, progress: Progress | None) -> Pairs:
        """Where each channel's data lies in the cloud, or will: a folder's place is named by its content."""
        uris = []
        for name, location in channels:
            if location.startswith(plan.SAMPLE):
                digest = f"sample-{samples.place_of(location.removeprefix(plan.SAMPLE)).name}"
                uris.append((name, place.data_uri(digest)))
            elif "://" in location:
                uris.append((name, location))
            else:
                uris.append((name, place.data_uri(self._digest(location, progress))))
        return tuple(uris)

    def _digest(self, location: str, progress: Progress | None) -> str:
        from orchestrator.aws import folders
        from orchestrator.aws.collecting import seen_file

        if location not in self._digests:
            folder = Path(location)
            seen = seen_file(folder, state.packages_dir()) if state.packages_dir().is_dir() else None
            self._digests[location] = folders.survey(folder, seen_file=seen, progress=progress).digest
        return self._digests[location]


def disarm() -> None:
    """Take back what faults of this submit the rehearsed cloud has not met: they are not the next one's."""
    from orchestrator.rehearsal import control

    standing = control.find(state.home() / "rehearsal")
    if standing is not None:
        with contextlib.suppress(OrchestrateError):
            control.call(standing.url, "DELETE", "faults")


_LEVELS = {
    "namespaces": "each host is a container of this kernel's, with a /opt/ml of its own",
    "folder": "without containers, which this system does not allow: /opt/ml is a folder, $ORCHESTRATE_ROOT",
}


def notes(
    spec: TrainingSpec, machine: catalog.Machine | None, place: AwsPlace, level: str | None = None
) -> tuple[str, ...]:
    """What the plan of a cloud's run should say aloud."""
    said = [f"image: {place.image_from}: {place.image}"]
    if level is not None:
        said.append(f"rehearsed on this machine; {_LEVELS.get(level, level)}")
    if machine is not None:
        said.append(_worst(spec, machine, place))
        if machine.gpu_count > 1 and spec.processes == 1:
            said.append(
                f"{machine.name} has {machine.gpu_count} GPUs and one process uses one: --processes {machine.gpu_count}"
            )
        if place.rehearsed and machine.gpu_count:
            said.append(f"the {machine.gpu} is not rehearsed: the script sees what GPUs this machine has")
    if spec.grace_seconds != TrainingSpec.grace_seconds:
        said.append(
            f"--grace-seconds has no effect: SageMaker gives {places.STOP_SECONDS} s, {places.GRACE_SECONDS} of them to save"
        )
    if spec.spot and place.max_wait_seconds:
        said.append(f"spot: waits for machines, all in all, {place.max_wait_seconds / 3600:.3g} h at most")
    return tuple(said)


def _worst(spec: TrainingSpec, machine: catalog.Machine, place: AwsPlace) -> str:
    """The most that the job can cost before SageMaker itself stops it."""
    hours = f"{place.max_seconds / 3600:.3g} h ({place.max_seconds_from})"
    most = places.ceiling_of(spec, machine, place.region)
    if most is None:
        return f"hard stop after {hours}; what it can cost is not known, for want of a price of {machine.name}"
    disk = f" and {most.disk_gb} GB of storage" if most.disk else ""
    warm = f", {place.options.keep_alive_minutes} min of warm pool included" if place.options.keep_alive_minutes else ""
    usd = most.shown(place.max_seconds)
    said = (
        f"hard stop after {hours}: at most {usd} of machine time{disk}{warm}, and what the upload of its results takes"
    )
    return "; ".join((said, *most.notes))


def stand_in(folder: Path, *, port: int, region: str | None, faults: Sequence[str]) -> None:
    """Be a rehearsed AWS in the foreground, until Ctrl-C."""
    from orchestrator.rehearsal import __main__ as server

    server.serve(folder, port=port, faults=faults, region=region or catalog.DEFAULT_REGION["sagemaker"])


def bring_in(region: str | None, profile: str | None, *, rehearse: bool) -> tuple[str, list[str]]:
    """The region that was looked in, and the ids of runs that were made elsewhere and are in the ledger from now on."""
    from orchestrator.backends import sagemaker
    from orchestrator.rehearsal import control
    from orchestrator.runs import Ledger

    where = places.region_of(region, profile) or (catalog.DEFAULT_REGION["sagemaker"] if rehearse else None)
    if where is None:  # another region than the user's would look as if there were no runs
        raise BadInput("no region: neither --region nor $AWS_REGION", hint="--region us-east-1")
    endpoint = control.ensure(state.home() / "rehearsal").url if rehearse else None
    with pricebook.using(books.listed()), Ledger.open(state.ledger_file()) as ledger:
        return where, sagemaker.sync(where, ledger, endpoint=endpoint, profile=profile)
