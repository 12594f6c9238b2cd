"""Every error that a user can cause or meet, each kind with its exit code.

    OrchestrateError              1   anything below
    ├── BadInput                  2   what was typed, written in orchestrate.toml or found in the source folder
    │   └── StateError            2   the state folder cannot be read or written
    ├── NotInCatalog              3   no such machine, region or sample
    ├── OverBudget                4   the worst case costs more than was allowed
    ├── CloudRefused              5   quota, permission, capacity
    ├── ScriptFailed              6   the user's script ended with an error
    ├── Conflict                  7   another run stands in the way
    ├── OutcomeUnknown           75   sent, and no answer came: `orchestrate resume`
    ├── LoginNeeded              77   no credentials, or expired ones
    └── Interrupted             130   Ctrl-C

A message says what happened, with the value; the hint is the next thing to type. A bug is none of these: it keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class OrchestrateError(Exception):
    """What went wrong in one line (*what*) and how to go on in another (*hint*)."""

    exit_code = 1
    key: str | None = None  # the settings file's key at fault, where it is one

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class BadInput(OrchestrateError):
    exit_code = 2


class StateError(BadInput):
    pass


class NotInCatalog(OrchestrateError):
    exit_code = 3


class OverBudget(OrchestrateError):
    exit_code = 4


class CloudRefused(OrchestrateError):
    exit_code = 5


class ScriptFailed(OrchestrateError):
    exit_code = 6


class Conflict(OrchestrateError):
    exit_code = 7


class OutcomeUnknown(OrchestrateError):
    exit_code = 75


class LoginNeeded(OrchestrateError):
    exit_code = 77


class Interrupted(OrchestrateError):
    exit_code = 130


class Problems(OrchestrateError):
    """Several errors found together, so that one try shows them all. Exits with the first one's code."""

    def __init__(self, errors: Iterable[OrchestrateError]) -> None:
        self.errors = tuple(flatten(errors))
        super().__init__("; ".join(error.what for error in self.errors))
        self.exit_code = self.errors[0].exit_code


def flatten(errors: Iterable[OrchestrateError]) -> Iterable[OrchestrateError]:
    """*errors* with each Problems replaced by its members."""
    for error in errors:
        if isinstance(error, Problems):
            yield from error.errors
        else:
            yield error


def raise_all(errors: Iterable[OrchestrateError]) -> None:
    """Raise what *errors* holds: nothing, the only one, or all of them as Problems."""
    found = tuple(flatten(errors))
    if len(found) == 1:
        raise found[0]
    if found:
        raise Problems(found)


def shown(value: object, limit: int = 80) -> str:
    """*value* as it may be printed in a message: control codes escaped, at most *limit* characters."""
    text = repr(value) if isinstance(value, str) else repr(str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
