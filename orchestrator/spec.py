"""What someone asked for: a training run in words that no cloud owns, checked before anything happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from orchestrator.errors import BadInput, OrchestrateError, shown

BACKENDS = ("local", "sagemaker", "vertex")
DEFAULT_CHANNEL = "training"
MAX_MACHINES = 64
MAX_PROCESSES = 64
MAX_HOURS = Decimal(672)  # SageMaker's longest training job: 28 days
MIN_HOURS = Decimal(1) / Decimal(60)
MAX_NAME = 38  # what is left of a cloud's 63 characters behind the prefix and the launch id
MAX_VALUE_BYTES = 64 * 1024
MAX_HYPERPARAMETERS = 1000

_NAME = re.compile(r"[a-zA-Z0-9](?:-*[a-zA-Z0-9])*")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CHANNEL = re.compile(r"[A-Za-z0-9.\-_]{1,64}")
_RESERVED_CHANNELS = {"code", "job"}  # the package and the job file travel in these
_RESERVED_VARIABLES = {"PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME"}
_RESERVED_PREFIXES = ("SM_", "AIP_", "ORCHESTRATE_", "SAGEMAKER_", "CLOUD_ML_")

Pairs = tuple[tuple[str, str], ...]
Amounts = tuple[tuple[str, Decimal], ...]
T = TypeVar("T")


@dataclass(frozen=True)
class CloudOptions:
    """Every field has the meaning of the option of its name; `extra` is raw fields of the cloud's own request."""

    image: str | None = None
    torch: str | None = None
    role: str | None = None
    bucket: str | None = None
    profile: str | None = None
    volume_gb: int = 30
    max_wait_hours: Decimal | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    kms_key: str | None = None
    tags: Pairs = ()
    keep_alive_minutes: int | None = None
    network_isolation: bool = False
    encrypt_traffic: bool = False
    tensorboard: bool = False
    metrics: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spending:
    """What may be spent, and the user's own prices: `[limits]` and `[prices]` of orchestrate.toml. USD.

    per_run_usd is a budget for every cloud run, per_month_usd one for all of a calendar month (UTC). discounts are fractions
    off the list price, contract prices are by the hour; both by pattern, see estimates.pricebook.Terms.
    """

    per_run_usd: Decimal | None = None
    per_month_usd: Decimal | None = None
    confirm_above_usd: Decimal = Decimal(5)
    discounts: Amounts = ()
    contract: Amounts = ()


@dataclass(frozen=True)
class TrainingSpec:
    """One training run as it was asked for. Every field has the meaning of the option of its name.

    script: a path, a shipped entrypoint's name, or None to let the folder decide. arguments reach the script untouched;
    hyperparameters go before them as `--name value`. data: (channel, location) pairs.
    """

    script: str | None = None
    arguments: tuple[str, ...] = ()
    hyperparameters: Pairs = ()
    backend: str = "local"
    instance: str | None = None
    region: str | None = None
    count: int = 1
    processes: int = 1
    spot: bool = False
    data: Pairs = ()
    environment: Pairs = ()
    source_dir: str | None = None
    name: str | None = None
    max_hours: Decimal | None = None
    budget_usd: Decimal | None = None
    grace_seconds: int = 30
    allow_files: tuple[str, ...] = ()
    resume_from: str | None = None
    fallback: str | None = None
    rehearse: bool = False
    cloud: CloudOptions = field(default_factory=CloudOptions)
    spending: Spending = field(default_factory=Spending)

    @property
    def instances(self) -> tuple[str, ...]:
        """The machines to try, in order: `--instance ml.p3.2xlarge,ml.g5.2xlarge`."""
        return tuple(dict.fromkeys(name.strip() for name in (self.instance or "").split(",") if name.strip()))


def whole_number(option: str, value: object, *, low: int, high: int) -> int:
    """*value* as an int from *low* to *high*. Only ASCII digits count: no 1.5, 1e3, 0x2 or ٣."""
    text = str(value).strip() if not isinstance(value, bool) else str(value)
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise BadInput(f"{option} {shown(value)} is not a whole number", hint=f"{option} {low}")
    number = int(text)
    if number < low:
        raise BadInput(f"{option} {number} is too small: at least {low}", hint=f"{option} {low}")
    if number > high:
        raise BadInput(f"{option} {number} is over this tool's cap of {high}", hint=f"{option} {high}")
    return number


def decimal_number(option: str, value: object, *, example: str) -> Decimal:
    """*value* as a finite Decimal above 0."""
    text = str(value).strip() if not isinstance(value, bool) else repr(value)
    if "," in text:
        raise BadInput(
            f"{option} {shown(value)} is not a number", hint=f"a decimal point, no commas: {option} {example}"
        )
    try:
        number = Decimal(text) if text.isascii() else Decimal("nan")
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or abs(number) > Decimal(10) ** 12:
        raise BadInput(f"{option} {shown(value)} is not a finite number", hint=f"{option} {example}")
    if number <= 0:
        raise BadInput(f"{option} {text} must be above 0", hint=f"{option} {example}")
    return number


def hours(value: object) -> Decimal:
    """A hard stop in hours: from one minute to 28 days."""
    number = decimal_number("--max-hours", value, example="2")
    if number > MAX_HOURS:
        raise BadInput(f"--max-hours {number} is over the clouds' longest job of {MAX_HOURS} h", hint="--max-hours 672")
    if number < MIN_HOURS:
        raise BadInput(
            f"--max-hours {number} is under one minute: it would stop before it starts", hint="--max-hours 0.1"
        )
    return number


def dollars(value: object, option: str = "--budget") -> Decimal:
    """An amount of money in USD, as a plain number."""
    example = f"{option} 10.50" if option.startswith("--") else f"{option} = 10.50"
    if re.search(r"[A-Za-z$€£%]", str(value)) and not re.fullmatch(r"(?i)[+-]?(nan|inf(inity)?)", str(value).strip()):
        raise BadInput(f"{option} {shown(value)} is not a plain number", hint=f"USD without a sign: {example}")
    try:
        return decimal_number(option, value, example="10.50")
    except BadInput as error:
        raise BadInput(error.what, hint=str(error.hint).replace(f"{option} 10.50", example)) from None


def run_name(value: object) -> str:
    """A name that every cloud takes: letters, digits and inner hyphens."""
    text = str(value)
    if len(text) > MAX_NAME:
        raise BadInput(
            f"--name has {len(text)} characters, at most {MAX_NAME}", hint=f"--name {text[:12]!r}…, shortened"
        )
    if not _NAME.fullmatch(text):
        cleaned = re.sub(r"[^A-Za-z0-9]+", "-", text.encode("ascii", "ignore").decode()).strip("-")
        raise BadInput(
            f"--name {shown(text)} may use a-z, A-Z, 0-9 and '-' inside", hint=f"--name {cleaned or 'my-run'}"
        )
    return text


def choice(option: str, value: object, allowed: Iterable[str]) -> str:
    """*value* if it is one of *allowed*."""
    known = tuple(allowed)
    if value not in known:
        raise BadInput(f"{option} {shown(value)} is not known", hint=suggestion(str(value), known))
    return str(value)


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """ "did you mean X?" for the nearest of *known*, upper and lower case alike, else the list of them."""
    import difflib

    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(wrong.casefold(), folded, n=1, cutoff=0.5)
    return f"did you mean {folded[near[0]]}?" if near else "one of: " + ", ".join(folded.values())


def text_value(option: str, value: object) -> str:
    """*value* as text that survives an argument list and a JSON file: no NUL, valid UTF-8, at most 64 KiB."""
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    if "\0" in text:
        raise BadInput(f"{option} {shown(text)} holds a NUL byte", hint="take it out; no program can be given one")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise BadInput(f"{option} {shown(text)} is not valid UTF-8", hint="give it as UTF-8 text") from error
    if size_bytes > MAX_VALUE_BYTES:
        raise BadInput(f"{option} has {size_bytes:,} bytes, at most {MAX_VALUE_BYTES:,}", hint="put it into a file")
    return text


def split_pair(option: str, text: str) -> tuple[str, str]:
    """`name=value` in two."""
    key, separator, value = text.partition("=")
    if not separator:
        example = text or ("lr" if option == "--hp" else "NAME")
        raise BadInput(f"{option} {shown(text)} is not name=value", hint=f"{option} {example}=VALUE")
    if not key:
        raise BadInput(f"{option} {shown(text)} has no name before '='", hint=f"{option} lr=0.1")
    return key, value


def hyperparameter(key: str, value: object) -> tuple[str, str]:
    """A hyperparameter: a name that can be a flag, and text that no one needs to keep secret."""
    if not _KEY.fullmatch(key) or len(key) > 256:
        raise BadInput(f"hyperparameter name {shown(key)} may use letters, digits, _ - .", hint="--hp lr=0.1")
    text = text_value(f"--hp {key}", value)
    refuse_secret(f"--hp {key}", f"{key}={text}")
    return key, text


def variable(key: str, value: object) -> tuple[str, str]:
    """An environment variable for the script."""
    if not _VARIABLE.fullmatch(key):
        raise BadInput(f"--env {shown(key)} is not a variable's name", hint="letters, digits and _: --env MY_FLAG=1")
    if key in _RESERVED_VARIABLES or key.startswith(_RESERVED_PREFIXES):
        raise BadInput(f"--env {key} is reserved: the platform sets it", hint="choose another name")
    text = text_value(f"--env {key}", value)
    refuse_secret(f"--env {key}", f"{key}={text}")
    return key, text


def channel(key: str, location: object) -> tuple[str, str]:
    """A data channel: its name, and where its data lies now."""
    if not _CHANNEL.fullmatch(key):
        raise BadInput(
            f"--data channel {shown(key)} may use letters, digits, . - _ (at most 64)", hint="--data training=DIR"
        )
    if key in _RESERVED_CHANNELS:
        raise BadInput(f"--data channel {key!r} is reserved for the package", hint="--data training=DIR")
    text = text_value(f"--data {key}", location)
    if not text:
        raise BadInput(f"--data {key}= names no place", hint=f"--data {key}=DIR")
    return key, text


def split_channel(text: str) -> tuple[str, str]:
    """`name=location`, or a location alone, which is the channel `training`."""
    key, separator, location = text.partition("=")
    # A path may hold '=': what stands before it is a channel's name only if it looks like one.
    if separator and _CHANNEL.fullmatch(key):
        return key, location
    if separator and "/" not in key and ":" not in key:
        return channel(key, location)
    return DEFAULT_CHANNEL, text


def refuse_secret(option: str, text: str) -> None:
    """Raise BadInput where *text* looks like a key: requests are stored, and a cloud shows them to many."""
    from orchestrator.secrets import looks_like_secret

    kind = looks_like_secret(text)
    if kind:
        raise BadInput(
            f"{option} looks like a secret ({kind}), and would be stored in the ledger and shown by the cloud",
            hint="keep it in the environment of this shell, or in the cloud's secret store",
        )


def unique_pairs(
    option: str,
    texts: Iterable[str],
    split: Callable[[str], tuple[str, str]],
    check: Callable[[str, str], T],
    problems: list[OrchestrateError],
) -> tuple[T, ...]:
    """Each of *texts* split and checked; a name given twice is a problem. Problems are collected, not raised."""
    values: dict[str, str] = {}
    found: list[T] = []
    for text in texts:
        try:
            key, value = split(text)
            if key in values:
                raise BadInput(
                    f"{option} {key} is given twice ({shown(values[key], 30)}, {shown(value, 30)})", hint="keep one"
                )
            values[key] = value
            found.append(check(key, value))
        except OrchestrateError as error:
            problems.append(error)
    return tuple(found)


def as_json(spec: TrainingSpec) -> dict[str, Any]:
    """*spec* as plain data, in the order of its fields."""
    return {
        "script": spec.script,
        "arguments": list(spec.arguments),
        "hyperparameters": dict(spec.hyperparameters),
        "backend": spec.backend,
        "instance": spec.instance,
        "region": spec.region,
        "count": spec.count,
        "processes": spec.processes,
        "spot": spec.spot,
        "data": dict(spec.data),
        "environment": dict(spec.environment),
        "source_dir": spec.source_dir,
        "name": spec.name,
        "max_hours": None if spec.max_hours is None else str(spec.max_hours),
        "budget_usd": None if spec.budget_usd is None else str(spec.budget_usd),
        "grace_seconds": spec.grace_seconds,
        "allow_files": list(spec.allow_files),
        "resume_from": spec.resume_from,
        "fallback": spec.fallback,
        "rehearse": spec.rehearse,
        "cloud": _cloud_json(spec.cloud),
        "spending": _spending_json(spec.spending),
    }


def _cloud_json(options: CloudOptions) -> dict[str, Any]:
    values = {one.name: getattr(options, one.name) for one in fields(CloudOptions)}
    values["tags"] = dict(options.tags)
    values["max_wait_hours"] = None if options.max_wait_hours is None else str(options.max_wait_hours)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _spending_json(spending: Spending) -> dict[str, Any]:
    return {
        "per_run_usd": None if spending.per_run_usd is None else str(spending.per_run_usd),
        "per_month_usd": None if spending.per_month_usd is None else str(spending.per_month_usd),
        "confirm_above_usd": str(spending.confirm_above_usd),
        "discounts": {pattern: str(value) for pattern, value in spending.discounts},
        "contract": {pattern: str(value) for pattern, value in spending.contract},
    }
