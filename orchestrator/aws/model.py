"""What SageMaker's own service model allows: every length, pattern, enum and required member, checked offline.

botocore carries the model and its client checks only types, required members and minimums; the rest is left to the
service. Read as data: neither botocore is imported nor a client made.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput

UNKNOWN = "Member is not known to the API"
NULL = "Member must not be null"
_CLASSES = re.compile(r"\\p\{(\w+)\}")
_SURROGATES = re.compile(r"\\u(D[89AB][0-9A-F]{2})\\u(D[C-F][0-9A-F]{2})", re.IGNORECASE)
_NOBODY = "\U0010ffff"  # no character: keeps a class that would be empty from being a syntax error
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "integer": int,
    "long": int,
    "float": (int, float),
    "double": (int, float),
    "timestamp": (datetime, int, float, str),
    "boolean": bool,
    "string": str,
    "list": (list, tuple),
    "map": Mapping,
    "structure": Mapping,
}
_NUMBERS = ("integer", "long", "float", "double")


@dataclass(frozen=True)
class Violation:
    """One thing that the service refuses. *value* is None for a member that is missing."""

    path: str
    """As AWS writes it: `resourceConfig.instanceType`, `inputDataConfig.1.member.channelName`, `environment.[KEY]`. A
    name that the API does not know stands as it was given."""
    value: Any
    constraint: str
    """As AWS writes it: `Member must have length less than or equal to 63`."""
    in_map: str = ""
    """Of a map's key or value, which AWS does not name: how it says it of the map as a whole."""


def violations(operation: str, params: Mapping[str, Any]) -> list[Violation]:
    """Everything in *params* that the model of *operation* (`CreateTrainingJob`) refuses, in the model's order.

    Raises BadInput if botocore is not installed, KeyError if there is no such operation.
    """
    shape = _model()["operations"][operation].get("input", {}).get("shape")
    return list(_walk(shape, params, "")) if shape else []


def aws_message(found: Sequence[Violation]) -> str:
    """*found* in the words of a ValidationException, as public reports quote them."""
    told = list(dict.fromkeys(one.in_map or _told(one.value, one.path, one.constraint) for one in found))
    return f"{len(told)} validation error{'s' if len(told) > 1 else ''} detected: {'; '.join(told)}"


def _told(value: Any, path: str, constraint: str) -> str:
    shown = "null" if value is None else f"'{value}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: {constraint}"


def enum(shape: str) -> tuple[str, ...]:
    """The values of an enumeration: `enum("TrainingInstanceType")`."""
    return tuple(_shapes()[shape]["enum"])


def limit(shape: str, bound: str = "max") -> int:
    """The `max` or `min` of a shape: characters of a string, members of a list or map, value of a number."""
    return int(_shapes()[shape][bound])


def pattern(shape: str) -> str:
    """The regular expression that a string of this shape matches from end to end, in Java's syntax."""
    return str(_shapes()[shape]["pattern"])


def members_at(operation: str, path: str = "") -> tuple[str, ...]:
    """The fields that the structure at *path* (as in a Violation) of an operation's input can have."""
    name = _model()["operations"][operation]["input"]["shape"]
    for part in path.split(".") if path else ():
        shape = _shapes()[name]
        if shape["type"] == "list":
            # `1.member`: the number says no more than that it is a list's
            name = name if part != "member" else shape["member"]["shape"]
        else:
            known = {_joined("", each): member["shape"] for each, member in shape.get("members", {}).items()}
            if part not in known:
                return ()
            name = known[part]
    return tuple(_shapes()[name].get("members", ()))


@cache
def _model() -> dict[str, Any]:
    spec = importlib.util.find_spec("botocore")
    found = sorted(Path(spec.origin).parent.glob("data/sagemaker/*/service-2.json*")) if spec and spec.origin else []
    if not found:
        raise BadInput("SageMaker needs boto3, which is not installed", hint="pip install 'orchestrate-ml[sagemaker]'")
    content = found[-1].read_bytes()
    model: dict[str, Any] = json.loads(gzip.decompress(content) if found[-1].suffix == ".gz" else content)
    return model


def _shapes() -> dict[str, dict[str, Any]]:
    shapes: dict[str, dict[str, Any]] = _model()["shapes"]
    return shapes


def _walk(name: str, value: Any, path: str) -> Iterator[Violation]:
    shape = _shapes()[name]
    kind = shape["type"]
    if not _is_a(kind, value):
        yield Violation(path or "request", _shown(shape, value), f"Member must be of type {kind}")
    elif kind == "structure":
        yield from _structure(shape, value, path)
    elif kind == "list":
        yield from _bounds(shape, value, len(value), path, "length")
        for index, item in enumerate(value, 1):
            yield from _walk(shape["member"]["shape"], item, f"{path}.{index}.member")
    elif kind == "map":
        yield from _bounds(shape, value, len(value), path, "length")
        for part in ("key", "value"):
            for key, item in value.items():
                for one in _walk(shape[part]["shape"], key if part == "key" else item, f"{path}.[{key}]"):
                    yield replace(one, in_map=_map_told(value, path, part, shape[part]["shape"]))
    elif kind == "string":
        yield from _string(shape, value, path)
    elif kind in _NUMBERS:
        yield from _bounds(shape, value, value, path, "value")


def _map_told(value: Mapping[str, Any], path: str, part: str, name: str) -> str:
    """As AWS says it: `Map value must satisfy constraint: [Member must have length less than or equal to 2500, …]`."""
    shape = _shapes()[name]
    rules = [f"Member must have length less than or equal to {shape['max']}"] if "max" in shape else []
    rules += [f"Member must have length greater than or equal to {shape.get('min', 0)}"]
    rules += [f"Member must satisfy regular expression pattern: {shape['pattern']}"] if "pattern" in shape else []
    pairs = _plain("{" + ", ".join(f"{key}={item}" for key, item in value.items()) + "}")
    return _told(pairs, path, f"Map {part} must satisfy constraint: [{', '.join(rules)}]")


def _structure(shape: Mapping[str, Any], value: Mapping[str, Any], path: str) -> Iterator[Violation]:
    given = {name: item for name, item in value.items() if item is not None}
    for name in shape.get("required", ()):
        if name not in given:
            yield Violation(_joined(path, name), None, NULL)
    for name, item in value.items():
        if name not in shape["members"]:
            yield Violation(f"{path}.{name}" if path else str(name), _plain(item), UNKNOWN)
        elif item is None and name not in shape.get("required", ()):
            yield Violation(_joined(path, name), None, NULL)
    if shape.get("union") and len(given) != 1:
        yield Violation(path, _plain(value), f"Member must have exactly one of {', '.join(shape['members'])}")
    for name, member in shape["members"].items():
        if name in given:
            yield from _walk(member["shape"], given[name], _joined(path, name))


def _string(shape: Mapping[str, Any], value: str, path: str) -> Iterator[Violation]:
    shown = _shown(shape, value)
    if "enum" in shape and value not in shape["enum"]:
        yield Violation(path, shown, f"Member must satisfy enum value set: [{', '.join(shape['enum'])}]")
    yield from _bounds(shape, shown, len(value), path, "length")
    if "pattern" in shape and not matches(shape["pattern"], value):
        yield Violation(path, shown, f"Member must satisfy regular expression pattern: {shape['pattern']}")


def _bounds(shape: Mapping[str, Any], value: Any, size: float, path: str, what: str) -> Iterator[Violation]:
    if size > shape.get("max", size):
        yield Violation(path, value, f"Member must have {what} less than or equal to {shape['max']}")
    if not size >= shape.get("min", size):  # so that a nan is refused as well
        yield Violation(path, value, f"Member must have {what} greater than or equal to {shape['min']}")


def matches(java: str, value: str) -> bool:
    """Whether *value* matches the model's pattern from end to end, as the service reads it."""
    names = frozenset(_CLASSES.findall(java))
    letters = "".join(sorted(set(value))) if names else ""
    return _compiled(java, letters).fullmatch(value) is not None


@lru_cache(maxsize=1024)
def _compiled(java: str, letters: str) -> re.Pattern[str]:
    """*java* for Python: `\\p{L}` becomes those of *letters*, the letters of the value, that are of the class."""

    def of_class(match: re.Match[str]) -> str:
        return "".join(re.escape(letter) for letter in letters if _is_in(letter, match[1])) + _NOBODY

    def code_point(match: re.Match[str]) -> str:
        high, low = int(match[1], 16), int(match[2], 16)
        return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"

    python = _SURROGATES.sub(code_point, _CLASSES.sub(of_class, java))
    # Java repeats an end of line where Python calls it nothing to repeat.
    python = re.sub(r"\$\{\d+,\d+\}", "$", python)
    return re.compile(python, re.ASCII)  # Java's \w, \d and \s are ASCII


def _is_in(letter: str, name: str) -> bool:
    if name == "Alnum":
        return letter.isascii() and letter.isalnum()
    return unicodedata.category(letter).startswith(name)


def _is_a(kind: str, value: Any) -> bool:
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _joined(path: str, name: str) -> str:
    lower = name[:1].lower() + name[1:]
    return f"{path}.{lower}" if path else lower


def _shown(shape: Mapping[str, Any], value: Any) -> Any:
    return "*** (not shown)" if shape.get("sensitive") else _plain(value)


def _plain(value: Any) -> Any:
    """*value*, cut where a message would get no clearer by its length."""
    if isinstance(value, str) and len(value) > 300:
        return value[:299] + "…"
    if isinstance(value, (Mapping, list, tuple)):
        text = str(value)
        return text if len(text) <= 300 else text[:299] + "…"
    return value
