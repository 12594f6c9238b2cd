"""Makes Typer's start quicker where that changes nothing: pydantic, which it asks to read values, is an eighth of a second.

Texts, lists of texts, paths and flags come from the command line as what they are. For these, and with the versions of Typer
that this is tested with, values are taken as they stand; all else, and every other version, goes Typer's own way.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import typer

KNOWN = ("0.29.",)


def hastened(app: typer.Typer, command: str | None) -> typer.Typer:
    """*app* as it is needed to run *command*, what was typed first; where that is no command, with all of them."""
    if not typer.__version__.startswith(KNOWN):
        return app
    _take_texts_as_they_are()
    return _only(app, command)


def _only(app: typer.Typer, command: str | None) -> typer.Typer:
    """Without the other commands, whose options would be built for nothing. The help and a misspelt word need them all."""
    commands = [one for one in app.registered_commands if _name(one) == command]
    groups = [one for one in app.registered_groups if one.typer_instance and one.typer_instance.info.name == command]
    if command is None or not (commands or groups):
        return app
    one = copy.copy(app)
    one.registered_commands, one.registered_groups = commands, groups
    return one


def _name(command: Any) -> str:
    name = command.name or command.callback.__name__
    return str(name).replace("_", "-")


@cache
def _take_texts_as_they_are() -> None:
    from typer import _coercion, core

    class AsItIs(_coercion.RuntimeParam):
        """A text, a path or a list of either, as it was typed."""

        def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002 - Typer's own signature
            if self.annotation is bool:
                return bool(value)  # a flag has no text: the parser has made it one
            one = Path if _member(self.annotation) is Path else str
            return [one(item) for item in value] if isinstance(value, list | tuple) else one(value)

    build = core._TyperParameter.get_runtime_param

    def get_runtime_param(self: Any) -> Any:
        described = self.type_descriptor
        if self._runtime_param is None and _is_plain(described):
            self._runtime_param = AsItIs(described.parameter_info, described.annotation)
        return build(self)

    core._TyperParameter.get_runtime_param = get_runtime_param  # type: ignore[method-assign]


def _member(annotation: Any) -> Any:
    """What a list is of; any other type as it is."""
    return annotation.__args__[0] if getattr(annotation, "__origin__", None) is list else annotation


def _is_plain(described: Any) -> bool:
    info = described.parameter_info
    asks_more = info.parser or info.exists or info.resolve_path or info.readable is False or info.allow_dash
    return _member(described.annotation) in (str, Path, bool) and not asks_more and described.file_annotation is None
