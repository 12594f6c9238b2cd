"""Faults that are asked for by text (`KIND[:OPERATION][:key=value…]`), each firing written down so that it can be replayed."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BadInput, raise_all, shown

# What is done to one call, by operation. "before": the call never took effect; "after": it did, and its answer is lost.
CALL_KINDS = {
    "throttle": "refused: too many requests",
    "500-before": "answered 500, without effect",
    "500-after": "taken, then answered 500",
    "reset-before": "connection reset, without effect",
    "reset-after": "taken, then the connection is reset",
    "hang-before": "no answer for `seconds`, then reset, without effect",
    "hang-after": "taken, no answer for `seconds`, then reset",
    "expired": "refused: the credentials have expired",
    "denied": "refused: no permission",
    "quota": "refused: over the account's quota (CreateTrainingJob)",
    "truncated": "half of the answer's body, then the connection closes",
    "slow": "answered after `seconds`",
}
# What happens to one training job.
JOB_KINDS = {
    "capacity": "taken, then Failed with CapacityError",
    "reclaim": "a spot job's machines are taken away `after` seconds of Training, or after `metrics` metric lines",
}
DEFAULT_SECONDS = {"hang-before": 5.0, "hang-after": 5.0, "slow": 1.0}
WHOLE, REAL = {"count", "seed", "metrics"}, {"rate", "after", "seconds"}
KEYS = WHOLE | REAL


@dataclass(frozen=True)
class FaultSpec:
    """One fault as it was asked for.

    Of the calls of *operation* ("*": any), the first *after* are left alone; then each meets the fault with probability
    *rate* (None: always) until it fired *count* times (None: no end). For `reclaim`, *after* is in seconds of Training.
    """

    text: str
    kind: str
    operation: str = "*"
    count: int | None = 1
    rate: float | None = None
    after: float = 0
    seconds: float = 0
    metrics: int | None = None
    seed: int | None = None

    @property
    def of_job(self) -> bool:
        return self.kind in JOB_KINDS


def parse(text: str) -> FaultSpec:
    """Raises BadInput where *text* is no fault."""
    kind, *rest = text.strip().split(":")
    if kind not in CALL_KINDS and kind not in JOB_KINDS:
        raise BadInput(f"there is no fault {shown(kind)}", hint=f"one of: {', '.join([*CALL_KINDS, *JOB_KINDS])}")
    operation = "CreateTrainingJob" if kind == "quota" else "*"
    if rest and "=" not in rest[0]:
        operation = rest.pop(0)
        if kind in JOB_KINDS or not (operation == "*" or operation.isalnum()):
            only = "takes no operation: it happens to a job, the API has no such refusal"
            what = only if kind in JOB_KINDS else f"names no operation: {shown(operation)}"
            raise BadInput(f"the fault {shown(text)} {what}", hint="for example: throttle:CreateTrainingJob:count=2")
        if kind == "quota" and operation != "CreateTrainingJob":
            raise BadInput(f"the fault {shown(text)}: only CreateTrainingJob has a quota", hint="type: quota")
    values = _values(text, rest)
    count = values.get("count", None if "rate" in values else 1)
    return FaultSpec(
        text=text,
        kind=kind,
        operation=operation,
        count=None if count is None else int(count),
        rate=values.get("rate"),
        after=values.get("after", 0),
        seconds=values.get("seconds", DEFAULT_SECONDS.get(kind, 0)),
        metrics=int(values["metrics"]) if "metrics" in values else None,
        seed=int(values["seed"]) if "seed" in values else None,
    )


def parse_all(texts: Iterable[str]) -> list[FaultSpec]:
    """Every fault of *texts*; all that is wrong with them is told at once."""
    specs, errors = [], []
    for text in texts:
        try:
            specs.append(parse(text))
        except BadInput as error:
            errors.append(error)
    raise_all(errors)
    return specs


def _values(text: str, pairs: list[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in KEYS:
            raise BadInput(f"the fault {shown(text)} has an unknown key {shown(name)}", hint=f"keys: {sorted(KEYS)}")
        try:
            values[name] = int(value) if name in WHOLE else float(value)
        except ValueError as error:
            raise BadInput(f"the fault {shown(text)}: {name} is no number: {shown(value)}") from error
        if not 0 <= values[name] <= (1 if name == "rate" else 1e9):  # also turns NaN away
            raise BadInput(f"the fault {shown(text)}: {name} is out of range: {shown(value)}")
    return values


Matches = Callable[[FaultSpec], bool]


class _Armed:
    """A fault that waits for its call: how many it saw, how often it fired, and its own dice."""

    def __init__(self, spec: FaultSpec) -> None:
        self.spec = spec
        self.seed = random.SystemRandom().randrange(10**9) if spec.seed is None else spec.seed
        self.dice = random.Random(self.seed)  # noqa: S311 - dice that can be thrown again, no secret
        self.seen = self.fired = 0

    @property
    def spent(self) -> bool:
        return self.spec.count is not None and self.fired >= self.spec.count

    def see(self) -> bool:
        """Look at one more call: whether this fault falls on it. The dice are thrown each time, so a seed says it all."""
        self.seen += 1
        lucky = self.spec.rate is None or self.dice.random() < self.spec.rate
        return lucky and not self.spent and (self.spec.of_job or self.seen > self.spec.after)


class Faults:
    """The armed faults of one rehearsal. Firings go to *log*, one JSON line each, with a text that fires there again."""

    def __init__(self, log: Path, texts: Iterable[str] = ()) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._armed = [_Armed(spec) for spec in parse_all(texts)]

    def arm(self, texts: Iterable[str]) -> None:
        armed = [_Armed(spec) for spec in parse_all(texts)]
        with self._lock:
            self._armed += armed

    def clear(self) -> None:
        with self._lock:
            self._armed = []

    def texts(self) -> list[str]:
        """The faults that may still fire."""
        with self._lock:
            return [armed.spec.text for armed in self._armed if not armed.spent]

    def on_call(self, operation: str) -> FaultSpec | None:
        """The fault that this call of *operation* meets, if any."""
        return self._first(operation, lambda spec: not spec.of_job and spec.operation in ("*", operation))

    def waiting(self, kind: str) -> FaultSpec | None:
        """The fault of *kind* that comes next, without meeting it."""
        with self._lock:
            return next((armed.spec for armed in self._armed if armed.spec.kind == kind and not armed.spent), None)

    def on_job(self, kind: str, job_name: str) -> FaultSpec | None:
        """The fault of *kind* that this training job meets, if any."""
        return self._first(job_name, lambda spec: spec.kind == kind)

    def _first(self, subject: str, matches: Matches) -> FaultSpec | None:
        with self._lock:
            due = [armed for armed in self._armed if matches(armed.spec) and armed.see()]
            if not due:
                return None
            due[0].fired += 1
            self._write(due[0], subject)
            return due[0].spec

    def _write(self, armed: _Armed, subject: str) -> None:
        spec = armed.spec
        again = spec.text
        if not spec.of_job:
            again = f"{spec.kind}:{spec.operation}:after={armed.seen - 1}:seconds={spec.seconds:g}"
        line = {"time": round(time.time(), 3), "fault": spec.text, "at": subject, "seed": armed.seed, "again": again}
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
