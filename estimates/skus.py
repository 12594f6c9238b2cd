"""What Google's billing catalog says of Vertex AI training, as rows of the price book.

The catalog prices parts, not machines: an hour of a core, of a GiB of memory, of a GPU, region by region. A machine's
price is the sum of its parts, and there is none where one of them is missing. The parts come as SKUs of the Cloud
Billing Catalog API; what is none of training's on-demand parts is counted, by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, TextIO

from estimates import accelerators, catalog
from estimates.catalog import Machine
from estimates.offers import ListingError, Path, PriceRow, RateRow, Reading, walk

Json = Any
Part = tuple[str, str]
"""Which part of a machine: `core` or `ram` and the family, `gpu` and the model, `disk` and the item of rates.csv."""

# Spot's and the management fee's descriptions hold the same words further on. The fee is in the on-demand price.
PREFIX = "vertex ai: training/pipelines on "
_HOST = re.compile(
    r"(?P<family>[a-z]\d[a-z]?|a3 ?(?:plus|mega)|compute optimized)(?: predefined)?(?: instance)? (?P<part>core|ram)"
    r"(?: running)? in .+",
    re.IGNORECASE,
)
_GPU = re.compile(
    r"nvidia (?:tesla )?(?P<model>[a-z]+\d+)(?: (?P<gib>\d+) ?gb)?(?: (?P<kind>plus|mega))?(?: gpu)?(?: running)? in .+",
    re.IGNORECASE,
)
_DISK = re.compile(r"(?P<kind>ssd backed|storage|balanced) pd capacity\b.*", re.IGNORECASE)
_DISK_ITEMS = {"ssd backed": "pd_ssd", "storage": "pd_standard", "balanced": "pd_balanced"}
_UNITS = {"core": "h", "gpu": "h", "ram": "GiBy.h", "disk": "GiBy.mo"}
_MEGA = re.compile(r"(a3) ?(?:plus|mega)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Sku:
    """An on-demand part of training, and what one unit of it costs."""

    part: Part
    regions: tuple[str, ...]
    usd: Decimal
    sku_id: str


class _Ignored(Exception):
    """Why a SKU is none of training's parts."""


def read(skus: Iterable[Mapping[str, Json]], *, as_of: date, source: str) -> Reading:
    """The prices of Vertex AI's machines and disks, from *skus* of the catalog as they were on *as_of*.

    Raises ListingError if something among *skus* is not an object.
    """
    parts: dict[tuple[Part, str], list[_Sku]] = {}
    ignored: Counter[str] = Counter()
    known = frozenset(catalog.regions("vertex"))
    for told in skus:
        if not isinstance(told, Mapping):
            raise ListingError(f"a SKU is not an object but {type(told).__name__}")
        try:
            sku = _sku(told, as_of)
            regions = [region for region in sku.regions if region in known]
            if not regions:
                raise _Ignored("in no region of Vertex AI")
            for region in regions:
                parts.setdefault((sku.part, region), []).append(sku)
        except _Ignored as reason:
            ignored[str(reason)] += 1
    conflicts: list[str] = []
    units = {key: _one_of(key, found, conflicts) for key, found in sorted(parts.items())}
    told_on = (as_of, "day")
    machines = catalog.machines("vertex")
    names = {machine.name: tuple(_gpu_names(machine, machines)) for machine in machines}
    prices = [
        PriceRow("vertex", name, region, "on_demand", "Training", usd, *told_on, "A", source, note)
        for region in sorted({region for _, region in units})
        for name, usd, note in (*_gpus(region, units), *_sums(machines, names, region, units))
    ]
    rates = [
        RateRow("vertex", item, region, unit.usd, "GiB-month", *told_on, source, True, f"SKU {unit.sku_id}")
        for ((kind, item), region), unit in units.items()
        if kind == "disk"
    ]
    return Reading("vertex", tuple(prices), tuple(rates), dict(ignored), tuple(conflicts))


def _gpus(region: str, units: Mapping[tuple[Part, str], _Sku]) -> Iterator[tuple[str, Decimal, str]]:
    """GPUs that are attached to a machine, under their names in the API: each is in the book as one."""
    for gpu in accelerators.accelerators().values():
        for name in (f"{gpu.gpu} {gpu.gpu_memory_gib:g}", gpu.gpu):
            sku = units.get((("gpu", name), region))
            if sku is not None:
                yield gpu.vertex_name, sku.usd, f"one GPU; SKU {sku.sku_id}"
                break


def _sku(told: Mapping[str, Json], as_of: date) -> _Sku:
    """*told* as a part of training. Raises _Ignored with the reason why it is none."""
    description = " ".join(str(told.get("description", "")).split())
    if "training/pipelines management fee" in description.lower():
        raise _Ignored("management fee, which the on-demand price contains")
    if not description.lower().startswith(PREFIX):
        raise _Ignored("not of training")
    usage = _table(told.get("category")).get("usageType") or "OnDemand"
    if usage != "OnDemand":
        raise _Ignored(f"not on demand: {usage}"[:80])
    part = _part(description[len(PREFIX) :])
    if part is None:
        shape = re.sub(r" (running )?in .*", "", description[len(PREFIX) :])
        raise _Ignored(f"not understood: {shape}"[:80])
    regions = told.get("serviceRegions")
    names = tuple(str(region) for region in regions) if isinstance(regions, list) else ()
    return _Sku(part, names, _usd(told, _UNITS[part[0]], as_of), str(told.get("skuId", "?")))


def _part(words: str) -> Part | None:
    if host := _HOST.fullmatch(words):
        family = _MEGA.sub(r"\1 mega", host["family"].lower())
        return host["part"].lower(), "c2" if family == "compute optimized" else family
    if gpu := _GPU.fullmatch(words):
        name = " ".join(filter(None, (gpu["model"].upper(), gpu["gib"], "mega" if gpu["kind"] else "")))
        return "gpu", name
    if disk := _DISK.fullmatch(words):
        return "disk", _DISK_ITEMS[disk["kind"].lower()]
    return None


def _usd(told: Mapping[str, Json], unit: str, as_of: date) -> Decimal:
    """What one *unit* costs beyond what is free, by the price in effect on *as_of*. Raises _Ignored where none is told."""
    infos = [_table(info) for info in _list(told.get("pricingInfo"))]
    begun = [info for info in infos if str(info.get("effectiveTime", ""))[:10] <= as_of.isoformat()]
    if not begun:
        raise _Ignored("without a price in effect")
    expression = _table(max(begun, key=lambda info: str(info.get("effectiveTime", ""))).get("pricingExpression"))
    if expression.get("usageUnit") != unit:
        raise _Ignored(f"in another unit than {unit}: {expression.get('usageUnit')}"[:80])
    charged = []
    for tier in map(_table, _list(expression.get("tieredRates"))):
        price = _table(tier.get("unitPrice"))
        if price.get("currencyCode") != "USD":
            raise _Ignored("not priced in USD")
        try:
            usd = int(price.get("units") or 0) + Decimal(int(price.get("nanos") or 0)).scaleb(-9)
            begin = Decimal(str(tier.get("startUsageAmount") or 0))
        except (TypeError, ValueError, ArithmeticError):
            raise _Ignored("a price that is no number") from None
        if usd > 0:
            charged.append((begin, usd))
    if not charged:
        raise _Ignored("free")
    return _trimmed(min(charged)[1])


def _trimmed(usd: Decimal) -> Decimal:
    text = f"{usd:f}"
    return Decimal(text.rstrip("0").rstrip(".") if "." in text else text)


def _one_of(key: tuple[Part, str], found: list[_Sku], conflicts: list[str]) -> _Sku:
    """The dearest of the SKUs for one part in one region."""
    chosen = max(found, key=lambda sku: (sku.usd, sku.sku_id))
    if len({sku.usd for sku in found}) > 1:
        others = ", ".join(sorted({f"${sku.usd} ({sku.sku_id})" for sku in found if sku.usd != chosen.usd}))
        (kind, name), region = key
        conflicts.append(f"{kind} {name} in {region}: ${chosen.usd} ({chosen.sku_id}) taken, also {others}")
    return chosen


def _sums(
    machines: Iterable[Machine],
    gpu_names: Mapping[str, Iterable[str]],
    region: str,
    units: Mapping[tuple[Part, str], _Sku],
) -> Iterator[tuple[str, Decimal, str]]:
    """Each machine all of whose parts have a price in *region*: its name, USD an hour, and how they add up."""
    for machine in machines:
        family = machine.name.split("-")[0] + _mega(machine)
        core, ram = (units.get(((part, family), region)) for part in ("core", "ram"))
        if core is None or ram is None or not machine.vcpus or machine.memory_gib is None:
            continue
        counted = [(Decimal(machine.vcpus), core, "vCPU"), (Decimal(str(machine.memory_gib)), ram, "GiB")]
        if machine.gpu:
            found = (units.get((("gpu", name), region)) for name in gpu_names[machine.name])
            gpu = next(filter(None, found), None)
            if gpu is None:
                continue
            counted.insert(0, (Decimal(machine.gpu_count), gpu, machine.gpu))
        formula = " + ".join(f"{quantity.normalize():f} × {sku.usd:f} ({what})" for quantity, sku, what in counted)
        yield machine.name, _trimmed(sum((quantity * sku.usd for quantity, sku, _ in counted), Decimal(0))), formula


def _mega(machine: Machine) -> str:
    """A3 Mega has GPUs, cores and memory of its own prices."""
    return " mega" if machine.name.startswith("a3-mega") else ""


def _gpu_names(machine: Machine, machines: Iterable[Machine]) -> Iterator[str]:
    """The names that the SKUs of the machine's GPU can have; one that tells no memory means the model's smallest."""
    gib = machine.gpu_memory_gib
    if not machine.gpu or gib is None:
        return
    yield f"{machine.gpu} {gib:g}{_mega(machine)}"
    if gib == min(other.gpu_memory_gib for other in machines if other.gpu == machine.gpu and other.gpu_memory_gib):
        yield f"{machine.gpu}{_mega(machine)}"


def _table(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def exported(text: TextIO) -> Iterator[Mapping[str, Json]]:
    """The SKUs of an export: the API's pages, one or several behind each other, a list of pages or of SKUs, or a SKU a line.

    Raises ListingError where *text* is not JSON, or a last page says that there are more.
    """
    held, holder = dict[str | int, Json](), Path()
    for path, value in walk(text, _descend_export):
        if path[-2:-1] == ("skus",):
            if not isinstance(value, Mapping):
                raise ListingError(f"a SKU is not an object but {type(value).__name__}")
            yield value
            continue
        if path[:-1] != holder:
            yield from _single(held)
            held, holder = {}, path[:-1]
        held[path[-1]] = value
    yield from _single(held)
    if held.get("nextPageToken"):
        raise ListingError("the last page of the export names a further one: it is not the whole catalog")


def _single(held: Mapping[str | int, Json]) -> Iterator[Mapping[str, Json]]:
    """The SKU that *held* is, where it is one and not a page's other members."""
    if "skuId" in held:
        yield {str(name): value for name, value in held.items()}


def _descend_export(path: Path) -> bool:
    if path[-1:] == ("skus",):
        return len(path) <= 3
    return len(path) == 1 or (len(path) == 2 and isinstance(path[1], int))
