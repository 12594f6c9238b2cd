"""What `orchestrate.toml` and the command line ask for, read into one TrainingSpec with every problem at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import bundled, cloudspec, spendspec
from orchestrator import spec as s
from orchestrator.errors import BadInput, OrchestrateError, raise_all, shown

FILE_NAME = "orchestrate.toml"
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Flags:
    """The command line's own words, unread: None or empty where nothing was typed."""

    script: str | None = None
    arguments: tuple[str, ...] | None = None
    hyperparameters: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    allow_files: tuple[str, ...] = ()
    backend: str | None = None
    instance: str | None = None
    region: str | None = None
    count: str | None = None
    processes: str | None = None
    spot: bool | None = None
    source_dir: str | None = None
    name: str | None = None
    max_hours: str | None = None
    budget_usd: str | None = None
    grace_seconds: str | None = None
    resume_from: str | None = None
    fallback: str | None = None
    rehearse: bool | None = None
    image: str | None = None
    torch: str | None = None
    role: str | None = None
    bucket: str | None = None
    profile: str | None = None
    volume_gb: str | None = None
    max_wait_hours: str | None = None
    subnets: tuple[str, ...] | None = None
    security_groups: tuple[str, ...] | None = None
    kms_key: str | None = None
    tags: tuple[str, ...] | None = None
    keep_alive_minutes: str | None = None
    network_isolation: bool | None = None
    encrypt_traffic: bool | None = None
    tensorboard: bool | None = None
    metrics: tuple[str, ...] | None = None


class _Number(str):
    """A TOML float kept as it was written: 0.10 stays 0.10 on its way to the script."""

    __slots__ = ()


def _text(option: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or isinstance(value, _Number):
            raise BadInput(f"{option} must be text, not {shown(value)}", hint=f'{option} = "…"')
        if not value:
            raise BadInput(f"{option} is empty", hint=f"leave {option} out or give it a value")
        return s.text_value(option, value)

    return read


def _flag(option: str) -> Callable[[object], bool]:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise BadInput(f"{option} must be true or false, not {shown(value)}", hint=f"{option} = true")
        return value

    return read


# One row an option: its key in the file, and who reads its value. Flags and file go through the same reader.
_SCALARS: Mapping[str, tuple[str, Callable[[object], Any]]] = {
    "script": ("script", _text("script")),
    "backend": ("backend", lambda value: s.choice("--backend", value, s.BACKENDS)),
    "instance": ("instance", _text("--instance")),
    "region": ("region", _text("--region")),
    "count": ("count", lambda value: s.whole_number("--count", value, low=1, high=s.MAX_MACHINES)),
    "processes": ("processes", lambda value: s.whole_number("--processes", value, low=1, high=s.MAX_PROCESSES)),
    "spot": ("spot", _flag("--spot")),
    "source_dir": ("source_dir", _text("--source-dir")),
    "name": ("name", s.run_name),
    "resume_from": ("resume_from", _text("--resume-from")),
    "fallback": ("fallback", lambda value: s.choice("--fallback", value, ("local",))),
    "rehearse": ("rehearse", _flag("--rehearse")),
    "limits.max_hours": ("max_hours", s.hours),
    "limits.budget_usd": ("budget_usd", s.dollars),
    "limits.grace_seconds": (
        "grace_seconds", lambda value: s.whole_number("--grace-seconds", value, low=1, high=3600)),
}  # fmt: skip
_ADDRESS = re.compile(r"[a-z0-9+]+://|(sample|torchvision):")
_TABLES: Mapping[str, tuple[str, Callable[[str, object], tuple[str, str]]]] = {
    "hyperparameters": ("hyperparameters", s.hyperparameter),
    "data": ("data", s.channel),
    "environment": ("environment", s.variable),
}
_LISTS = ("arguments", "allow_files")
_TOP = (*(key for key in _SCALARS if "." not in key), *_TABLES, *_LISTS, "limits", "prices")
_LIMITS = (*(key.split(".")[1] for key in _SCALARS if key.startswith("limits.")), *spendspec.LIMITS)


def find_file(folder: Path) -> Path | None:
    """The orchestrate.toml of *folder*, if it has one."""
    path = folder / FILE_NAME
    return path if path.exists() or path.is_symlink() else None


def load(flags: Flags, file: Path | None) -> s.TrainingSpec:
    """The spec of *file* (if any) under *flags*: flags win, tables are joined key by key.

    Raises BadInput, or Problems with every fault of both.
    """
    problems: list[OrchestrateError] = []
    values = _read_file(file, problems) if file is not None else {}
    _read_flags(flags, values, problems)
    raise_all(problems)
    cloud = cloudspec.gathered(values)
    spec = s.TrainingSpec(**values, cloud=cloud)
    if spec.backend != "local":
        raise_all(cloudspec.check_together(cloud, spot=spec.spot, max_hours=spec.max_hours))
    return spec


def _read_flags(flags: Flags, values: dict[str, Any], problems: list[OrchestrateError]) -> None:
    for field_name, reader in _SCALARS.values():
        typed = getattr(flags, field_name)
        if typed is not None:
            _collect(problems, values, field_name, reader, typed)
    for name, (_, reader) in cloudspec.OPTIONS.items():
        typed = getattr(flags, name, None)
        if typed is not None and typed != ():
            _collect(problems, values, name, reader, typed)
    if flags.arguments is not None:
        _collect(problems, values, "arguments", _argument_list, flags.arguments)
    if flags.allow_files:
        values["allow_files"] = (*values.get("allow_files", ()), *flags.allow_files)
    pairs = (
        ("hyperparameters", "--hp", flags.hyperparameters, lambda text: s.split_pair("--hp", text), s.hyperparameter),
        ("data", "--data", flags.data, s.split_channel, s.channel),
        ("environment", "--env", flags.environment, lambda text: s.split_pair("--env", text), s.variable),
    )
    for field_name, option, texts, split, check in pairs:
        typed_pairs = s.unique_pairs(option, texts, split, check, problems)
        values[field_name] = tuple((dict(values.get(field_name, ())) | dict(typed_pairs)).items())
    if len(values["hyperparameters"]) > s.MAX_HYPERPARAMETERS:
        problems.append(BadInput(f"{len(values['hyperparameters'])} hyperparameters, at most {s.MAX_HYPERPARAMETERS}"))
    if len(values["data"]) > 18:  # SageMaker's 20 channels less the two that carry the code
        problems.append(BadInput(f"{len(values['data'])} data channels, at most 18", hint="put folders together"))


def _argument_list(arguments: Iterable[object]) -> tuple[str, ...]:
    checked = tuple(s.text_value("an argument behind --", item) for item in arguments)
    for text in checked:
        s.refuse_secret("an argument behind --", text)
    return checked


def _collect(
    problems: list[OrchestrateError],
    values: dict[str, Any],
    name: str,
    reader: Callable[[Any], Any],
    value: object,
    *,
    key: str | None = None,
) -> None:
    try:
        values[name] = reader(value)
    except OrchestrateError as error:
        problems.append(_at(key, error))


def _at(key: str | None, error: OrchestrateError) -> OrchestrateError:
    error.key = key
    return error


def _read_file(path: Path, problems: list[OrchestrateError]) -> dict[str, Any]:
    try:
        text = _file_text(path)
        table = tomllib.loads(text, parse_float=_Number)
    except OrchestrateError as error:
        problems.append(error)
        return {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        problems.append(BadInput(f"{path.name}: {_toml_fault(error)}", hint="https://toml.io shows the format"))
        return {}
    found: list[OrchestrateError] = []
    values = _read_table(table, found)
    problems.extend(_located(error, path, text) for error in found)
    _resolve_paths(values, path.parent)
    return values


def _file_text(path: Path) -> str:
    if path.is_dir():
        raise BadInput(f"{path} is a folder, not a settings file", hint="rename it, or --config FILE")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    if len(data) > MAX_BYTES:
        raise BadInput(f"{path.name} has {len(data):,} bytes, at most {MAX_BYTES:,}", hint="is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not UTF-8 at byte {error.start}", hint="save it as UTF-8") from error


def _toml_fault(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _read_table(table: dict[str, Any], problems: list[OrchestrateError]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    table = _backend_table(dict(table), values, problems)
    limits = table.pop("limits", {})
    if not isinstance(limits, dict):
        problems.append(_at("limits", BadInput("limits must be a table", hint="[limits], then max_hours = 2")))
        limits = {}
    _unknown_keys(table, _TOP, "", problems)
    _unknown_keys(limits, _LIMITS, "limits.", problems)
    flat = table | {f"limits.{key}": value for key, value in limits.items()}
    for key, (field_name, reader) in _SCALARS.items():
        if key in flat:
            _collect(problems, values, field_name, reader, flat[key], key=key)
    for key, (field_name, check) in _TABLES.items():
        values[field_name] = _pairs(key, table.get(key, {}), check, problems)
    for key in _LISTS:
        if key in table:
            _collect(problems, values, key, _string_list(key), table[key], key=key)
    values["spending"] = spendspec.read(limits, table.get("prices", {}), problems)
    return values


def _backend_table(table: dict[str, Any], values: dict[str, Any], problems: list[OrchestrateError]) -> dict[str, Any]:
    """`[backend]` may be just the name, or a table: name = "…", and a cloud's own options in `[backend.sagemaker]`."""
    backend = table.get("backend")
    if not isinstance(backend, dict):
        return table
    _unknown_keys(backend, ("name", "sagemaker"), "backend.", problems)
    table.pop("backend")
    if "name" in backend:
        table["backend"] = backend["name"]
    options = backend.get("sagemaker", {})
    if not isinstance(options, dict):
        wrong = BadInput("backend.sagemaker must be a table", hint="[backend.sagemaker], then role = …")
        problems.append(_at("sagemaker", wrong))
        return table
    _unknown_keys(options, tuple(cloudspec.OPTIONS), "backend.sagemaker.", problems)
    for name, (_, reader) in cloudspec.OPTIONS.items():
        if name in options:
            given = options[name]
            _collect(problems, values, name, reader, str(given) if isinstance(given, _Number) else given, key=name)
    return table


def _unknown_keys(
    table: Mapping[str, Any], known: Sequence[str], prefix: str, problems: list[OrchestrateError]
) -> None:
    for key in table:
        if key not in known:
            problems.append(_at(key, BadInput(f"unknown key {shown(prefix + key)}", hint=s.suggestion(key, known))))


def _pairs(
    key: str, table: object, check: Callable[[str, object], tuple[str, str]], problems: list[OrchestrateError]
) -> s.Pairs:
    if not isinstance(table, dict):
        wrong = BadInput(f"{key} must be a table, not {shown(table)}", hint=f'[{key}], then name = "value"')
        problems.append(_at(key, wrong))
        return ()
    found = []
    for name, value in table.items():
        try:
            if isinstance(value, (dict, list)):
                raise BadInput(f"{key}.{name} must be one value, not {shown(value)}", hint=f'{name} = "text"')
            found.append(check(name, value))
        except OrchestrateError as error:
            problems.append(_at(name, error))
    return tuple(found)


def _string_list(key: str) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or any(isinstance(item, (dict, list)) for item in value):
            example = '["--epochs", "3"]' if key == "arguments" else '["FILE"]'
            raise BadInput(f"{key} must be a list of texts, not {shown(value)}", hint=f"{key} = {example}")
        return _argument_list(value) if key == "arguments" else tuple(s.text_value(key, item) for item in value)

    return read


def _located(error: OrchestrateError, path: Path, text: str) -> OrchestrateError:
    """*error* with the file's name, and the first line on which its key stands."""
    name = re.escape((error.key or "").split(".")[-1])
    line = re.search(rf'(?m)^[ \t]*\[*[ \t]*["\']?(?:[\w\-]+\.)*{name}["\']?[ \t]*[=\].]', text) if name else None
    place = f"{path.name}:{text.count(chr(10), 0, line.start()) + 1}" if line else path.name
    return type(error)(f"{place}: {error.what}", hint=error.hint)


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Paths in the file are relative to the file, wherever the command is typed."""
    script = values.get("script")
    if isinstance(script, str) and script not in bundled.entrypoint_names():
        values["script"] = str(folder / Path(script).expanduser())
    if "source_dir" in values:
        values["source_dir"] = str(folder / Path(values["source_dir"]).expanduser())
    values["data"] = tuple(
        (name, place if _ADDRESS.match(place) else str(folder / Path(place).expanduser()))
        for name, place in values.get("data", ())
    )
