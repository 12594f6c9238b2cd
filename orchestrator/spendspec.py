"""What may be spent, and the user's own prices: `[limits]` and `[prices]` of orchestrate.toml, read and checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from estimates import catalog
from orchestrator import spec as s
from orchestrator.errors import BadInput, OrchestrateError, shown

PRICES = ("discounts", "contract")


def _confirm_above(value: object) -> Decimal:
    """0 asks about every cloud run."""
    if str(value).strip() in ("0", "0.0", "0.00"):
        return Decimal(0)
    try:
        return s.dollars(value, "confirm_above_usd")
    except BadInput as error:
        raise BadInput(error.what.replace("must be above 0", "must be 0 or more"), hint=error.hint) from None


# One row a key of [limits] that no flag has: who reads its value.
LIMITS: Mapping[str, Callable[[object], Decimal]] = {
    "per_run_usd": lambda value: s.dollars(value, "per_run_usd"),
    "per_month_usd": lambda value: s.dollars(value, "per_month_usd"),
    "confirm_above_usd": _confirm_above,
}


def read(limits: Mapping[str, Any], prices: object, problems: list[OrchestrateError]) -> s.Spending:
    """What the two tables say; what is wrong with them goes to *problems*, all of it."""
    values: dict[str, Any] = {}
    for name, reader in LIMITS.items():
        if name in limits:
            try:
                values[name] = reader(limits[name])
            except OrchestrateError as error:
                problems.append(_at(name, error))
    if not isinstance(prices, Mapping):
        wrong = BadInput("prices must be a table", hint="[prices.discounts], then sagemaker = 0.12")
        problems.append(_at("prices", wrong))
        return s.Spending(**values)
    for name in prices:
        if name not in PRICES:
            problems.append(_at(name, BadInput(f"unknown key {shown(f'prices.{name}')}", hint=_one_of(name, PRICES))))
    for name, amount in (("discounts", _fraction), ("contract", _hourly)):
        values[name] = _amounts(name, prices.get(name, {}), amount, problems)
    return s.Spending(**values)


def _amounts(
    table: str, rows: object, amount: Callable[[str, object], Decimal], problems: list[OrchestrateError]
) -> s.Amounts:
    if not isinstance(rows, Mapping):
        wrong = BadInput(f"prices.{table} must be a table, not {shown(rows)}", hint=_EXAMPLES[table])
        problems.append(_at(table, wrong))
        return ()
    found = []
    for pattern, value in rows.items():
        try:
            _check_pattern(table, pattern)
            found.append((pattern, amount(pattern, value)))
        except OrchestrateError as error:
            problems.append(_at(pattern, error))
    return tuple(found)


_EXAMPLES = {
    "discounts": "[prices.discounts], then sagemaker = 0.12",
    "contract": '[prices.contract], then "ml.p3.2xlarge@us-east-1" = 3.10',
}


def _fraction(pattern: str, value: object) -> Decimal:
    """What is taken off the list price."""
    number = _number(f"the discount of {pattern}", value, f'"{pattern}" = 0.12')
    if number > 1:
        hint = f'12 % is written 0.12: "{pattern}" = {number / 100:f}' if number <= 100 else f'"{pattern}" = 0.12'
        raise BadInput(f"the discount of {pattern} is {number}, and it is a fraction from 0 to 1", hint=hint)
    return number


def _hourly(pattern: str, value: object) -> Decimal:
    number = _number(f"the contract price of {pattern}", value, f'"{pattern}" = 3.10')
    if number == 0:
        hint = f'[prices.discounts] "{pattern}" = 1   if it is free'
        raise BadInput(f"the contract price of {pattern} must be above 0, USD an hour", hint=hint)
    return number


def _number(what: str, value: object, example: str) -> Decimal:
    """*value* as a Decimal, 0 or more. TOML's own numbers alone: a text such as "12 %" could mean two things."""
    text = str(value)
    if isinstance(value, bool) or type(value) is str or not re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]{1,2})?", text):
        raise BadInput(f"{what} is {shown(value)}, not a number", hint=example)
    number = Decimal(text)
    if number < 0:
        raise BadInput(f"{what} is {number}, and cannot be under 0", hint=example)
    return number


def _check_pattern(table: str, pattern: str) -> None:
    """Raise BadInput, with the nearest name, where *pattern* fits nothing that can be rented."""
    name, at, region = pattern.partition("@")
    fitting = _fitting(name)
    if table == "contract" and name in catalog.CLOUD_NAMES:
        what = f"[prices.contract] {shown(pattern)}: a contract price is that of one machine"
        raise BadInput(what, hint=f"{_EXAMPLES['contract']}; or a discount: [prices.discounts]")
    if not fitting:
        known = (*catalog.CLOUD_NAMES, *(machine.name for machine in catalog.machines()))
        bare = name.replace("*", "")
        what = f"[prices.{table}] {shown(pattern)}: no training machine is called that"
        raise BadInput(what, hint=_one_of(bare, known, or_else="orchestrate machines lists their names"))
    regions = {place for cloud in fitting for place in catalog.regions(cloud)}
    if at and region not in regions:
        what = f"[prices.{table}] {shown(pattern)}: no region {shown(region)}"
        raise BadInput(what, hint=_one_of(region, sorted(regions)))


def _fitting(name: str) -> set[str]:
    """The clouds that have a machine of that name."""
    if name in catalog.CLOUD_NAMES:
        return {name}
    wanted = re.compile(".*".join(map(re.escape, name.split("*"))))
    found = {machine.cloud for machine in catalog.machines() if wanted.fullmatch(machine.name)}
    if found or "*" in name:
        return found or {machine.cloud for machine in catalog.attachable() if wanted.fullmatch(machine.name)}
    try:
        return {catalog.machine(name).cloud}
    except catalog.CatalogError:
        return set()


def _one_of(wrong: str, known: Iterable[str], *, or_else: str | None = None) -> str:
    """The nearest of *known*, as words."""
    hint = s.suggestion(wrong, known)
    return or_else if or_else and hint.startswith("one of") else hint


def _at(key: str, error: OrchestrateError) -> OrchestrateError:
    error.key = key
    return error
