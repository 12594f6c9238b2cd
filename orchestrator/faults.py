"""The last stop of every error on the command line: one clear line, a remedy, and the exit code of its kind."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput, Interrupted, OrchestrateError, Problems, StateError

FULL = (errno.ENOSPC, errno.EDQUOT)


def exit_code_of(command: Callable[[], Any], *, as_json: bool) -> int:
    """Run *command*; tell what went wrong on stderr (with as_json also as one object on stdout). A bug keeps its traceback."""
    from typer.exceptions import Abort, TyperException

    try:
        result = command()
        sys.stdout.flush()
        if result == Interrupted.exit_code:  # Typer's answer to Ctrl-C
            raise KeyboardInterrupt
    except OrchestrateError as error:
        return _told(error, as_json=as_json)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no words at all: the help is the answer
            print(error.format_message(), file=sys.stderr)
            return BadInput.exit_code
        return _told(_usage(error), as_json=as_json)
    except (Abort, KeyboardInterrupt):
        return _told(Interrupted("interrupted", hint="orchestrate list shows what still runs"), as_json=as_json)
    except (BrokenPipeError, SystemExit):  # `orchestrate list | head`: nobody reads on; Typer makes an exit of it
        _silence()
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        _silence()
        return _told(StateError(f"cannot write the output: {error.strerror}", hint="send it elsewhere"), as_json=False)
    return result if isinstance(result, int) else 0


def _printable(text: str) -> str:
    """*text* without control codes: what an error quotes must not steer the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def ready_streams() -> None:
    """Make stdout and stderr take whatever is printed: closed ones swallow it, and no letter is one too many for them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _silence() -> None:
    """Nothing more can be written to stdout: also not by the interpreter when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: OrchestrateError, *, as_json: bool) -> int:
    members = error.errors if isinstance(error, Problems) else (error,)
    for member in members:
        print(f"error: {_printable(member.what)}", file=sys.stderr)
        if member.hint:
            bare = member.hint.startswith(("did you mean", "one of"))
            print(f"  {member.hint}" if bare else f"  try: {member.hint}", file=sys.stderr)
    if as_json:
        faults = [{"error": member.what, "hint": member.hint, "exit_code": member.exit_code} for member in members]
        print(json.dumps({"errors": faults, "exit_code": error.exit_code}, ensure_ascii=False, indent=2))
    return error.exit_code


def _usage(error: Any) -> BadInput:
    """Typer's complaint in our form."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "orchestrate"
    near = getattr(error, "possibilities", None)
    hint = f"did you mean {near[0]}?" if near else f"{command} --help"
    if getattr(error, "option_name", None) == "--json":
        hint = "put it behind the command: orchestrate list --json"
    elif near and command.endswith("submit"):
        hint += " Or, if it is for the script: orchestrate submit SCRIPT -- " + str(error.option_name)
    what = re.sub(r" (\(Possible options: .*\)|Did you mean .*)$", "", error.format_message()).rstrip(".")
    return BadInput(what[:1].lower() + what[1:], hint=hint)
