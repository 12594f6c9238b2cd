"""What a cloud must be told beyond the run itself: role, bucket, image, network. Read from flags and `[backend.sagemaker]`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any

from orchestrator import spec as s
from orchestrator.errors import BadInput, OrchestrateError, shown

MAX_METRICS = 40  # SageMaker's limit of metric definitions
_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_TORCH = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?")


def _plain(option: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if type(value) is not str or not value:
            raise BadInput(f"{option} must be text, not {shown(value)}", hint=f"{option} VALUE")
        text = s.text_value(option, value)
        s.refuse_secret(option, text)
        return text

    return read


def _yes(option: str) -> Callable[[object], bool]:
    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise BadInput(f"{option} must be true or false, not {shown(value)}", hint="true")
        return value

    return read


def _texts(option: str, check: Callable[[str], str]) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        items = value if isinstance(value, (list, tuple)) else None
        if items is None or not all(isinstance(item, str) for item in items):
            raise BadInput(f"{option} must be a list of texts, not {shown(value)}", hint='["…"]')
        return tuple(dict.fromkeys(check(item) for item in items))

    return read


def _metric(name: str) -> str:
    if not _METRIC.fullmatch(name):
        raise BadInput(f"--metric {shown(name)} is not a metric's name", hint="--metric val_accuracy")
    return name


def _torch(value: object) -> str:
    text = str(value)
    if not _TORCH.fullmatch(text):
        raise BadInput(f"--torch {shown(text)} is not a version", hint="--torch 2.6")
    return text


def _tags(value: object) -> s.Pairs:
    """A table of the settings file, or `NAME=VALUE` words."""
    pairs = list(value.items()) if isinstance(value, dict) else [s.split_pair("--tag", word) for word in _words(value)]
    found: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(text, str):
            raise BadInput(f"--tag {shown(name)} must be text, not {shown(text)}", hint="--tag team=vision")
        if name in found:
            raise BadInput(f"--tag {name} is given twice", hint="keep one")
        s.refuse_secret(f"--tag {name}", f"{name}={text}")
        found[name] = s.text_value(f"--tag {name}", text)
    return tuple(found.items())


def _words(value: object) -> tuple[str, ...]:
    return _texts("--tag", str)(value)


def _wait(value: object) -> Decimal:
    return s.decimal_number("--max-wait", value, example="4")


def _extra(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"extra must be a table, not {shown(value)}", hint="[backend.sagemaker.extra]")
    s.refuse_secret("[backend.sagemaker.extra]", json.dumps(value, default=str))
    return value


# One row an option: how it is typed, and who reads its value, from the file and from the command line alike.
OPTIONS: Mapping[str, tuple[str, Callable[[object], Any]]] = {
    "image": ("--image", _plain("--image")),
    "torch": ("--torch", _torch),
    "role": ("--role", _plain("--role")),
    "bucket": ("--bucket", lambda value: _plain("--bucket")(value).removeprefix("s3://").rstrip("/")),
    "profile": ("--profile", _plain("--profile")),
    "volume_gb": ("--volume", lambda value: s.whole_number("--volume", value, low=1, high=16384)),
    "max_wait_hours": ("--max-wait", _wait),
    "subnets": ("--subnet", _texts("--subnet", _plain("--subnet"))),
    "security_groups": ("--security-group", _texts("--security-group", _plain("--security-group"))),
    "kms_key": ("--kms-key", _plain("--kms-key")),
    "tags": ("--tag", _tags),
    "keep_alive_minutes": ("--keep-alive", lambda value: s.whole_number("--keep-alive", value, low=1, high=360)),
    "network_isolation": ("--network-isolation", _yes("--network-isolation")),
    "encrypt_traffic": ("--encrypt-traffic", _yes("--encrypt-traffic")),
    "tensorboard": ("--tensorboard", _yes("--tensorboard")),
    "metrics": ("--metric", _texts("--metric", _metric)),
    "extra": ("[backend.sagemaker.extra]", _extra),
}


def gathered(values: dict[str, Any]) -> s.CloudOptions:
    """The options among *values*, taken out of it."""
    return s.CloudOptions(**{one.name: values.pop(one.name) for one in fields(s.CloudOptions) if one.name in values})


def check_together(options: s.CloudOptions, *, spot: bool, max_hours: Decimal | None) -> list[OrchestrateError]:
    """What is wrong with *options* taken together."""
    problems: list[OrchestrateError] = []
    wait = options.max_wait_hours
    if wait is not None and not spot:
        problems.append(BadInput("--max-wait has no effect without --spot", hint="add --spot, or leave it out"))
    if wait is not None and max_hours is not None and wait < max_hours:
        what = f"--max-wait ({wait} h) is less than --max-hours ({max_hours} h)"
        problems.append(BadInput(what, hint=f"--max-wait {max_hours}"))
    if options.keep_alive_minutes and spot:
        problems.append(BadInput("--keep-alive cannot be had with --spot", hint="leave one of them out"))
    if bool(options.subnets) != bool(options.security_groups):
        problems.append(BadInput("a VPC needs both --subnet and --security-group", hint="name both, or neither"))
    if len(options.metrics) > MAX_METRICS:
        problems.append(BadInput(f"{len(options.metrics)} metrics, at most {MAX_METRICS}", hint="name fewer --metric"))
    return problems
