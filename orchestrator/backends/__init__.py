"""The places where a run can go. Each is one class with the same six methods, loaded only when it is named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import BadInput
from orchestrator.plan import Plan
from orchestrator.runs import Ledger, Run, RunState

_TABLE = {
    "local": "orchestrator.backends.local:LocalBackend",
    "sagemaker": "orchestrator.backends.sagemaker:SageMakerBackend",
}
_COMING = {
    "vertex": "--backend local --instance n1-standard-4 rehearses that machine's size here and tells the price",
}
KEPT = ("model", "output/data", "checkpoints")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Artifact:
    """One file that a run left: its path within the run, its size, and where it lies now."""

    path: str
    size_bytes: int
    place: str


@dataclass(frozen=True)
class Interruption:
    """What a Ctrl-C did: *message* is for stderr; *leaves*: the command ends now, and the run goes on."""

    message: str
    leaves: bool = False


class Started(Protocol):
    """A run that was just sent, as the command that sent it holds on to it."""

    def let_go(self) -> None:
        """The run goes on without this command."""

    def close(self) -> None:
        """This command is done with the run."""

    def interrupted(self, times: int) -> Interruption:
        """Do what the *times*-th Ctrl-C asks for (1, 2, …), and tell what that was."""


class Advance(Protocol):
    """Writes into the ledger, before the next step begins, how far a run has come."""

    def __call__(self, state: RunState, *, note: str | None = None) -> None: ...


class Backend(Protocol):
    """What every place must be able to do."""

    cancel_on_interrupt: bool
    """Whether Ctrl-C stops a run that would go on without the command. Not a local one, which it stops anyway."""

    def request(self, plan: Plan) -> dict[str, Any]:
        """Exactly what will be sent. Pure: the same plan gives the same request, and nothing is touched."""

    def submit(
        self,
        run: Run,
        request: Mapping[str, Any],
        archive: Path,
        channels: Mapping[str, Path],
        advance: Advance,
        progress: Progress | None = None,
    ) -> Started:
        """Send *request*, and each step of it to *advance* first. channels: the folders here that go along.

        Where a run may be gone on with after a crash (a cloud's), called again for that.
        """

    def hold(self, run: Run) -> Started:
        """A command's hold on a run that was sent before."""

    def refresh(self, run: Run, ledger: Ledger) -> Run:
        """The run as it stands now, with the ledger brought up to date."""

    def logs(self, run: Run, *, follow: bool) -> Iterator[bytes]:
        """The script's output from its beginning, in pieces; follow: until the run has ended."""

    def artifacts(self, run: Run) -> list[Artifact]:
        """The files that the run left."""

    def collect(
        self, run: Run, folder: Path, *, checkpoints: bool = False, progress: Progress | None = None
    ) -> list[Path]:
        """Bring the files that the run left into *folder*. checkpoints: those too, where they lie in a cloud."""

    def cancel(self, run: Run, *, grace_seconds: int, reason: str) -> None:
        """Ask the run to stop: SIGTERM, grace_seconds to save, then the whole process group is killed."""


def load(name: str) -> Backend:
    """The backend called *name*. Raises BadInput for a cloud that this version cannot reach yet."""
    if name in _COMING:
        raise BadInput(f"this version cannot launch on {name} yet", hint=_COMING[name])
    module, _, attribute = _TABLE[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def kept_files(root: Path) -> Iterator[Artifact]:
    """The files in *root*, a run's folder here, that are its results."""
    for folder in KEPT:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield Artifact(path.relative_to(root).as_posix(), path.stat().st_size, str(path))
