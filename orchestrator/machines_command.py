"""What `orchestrate machines` does behind its flags: the catalog, filtered, or all that is known of one machine."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from estimates import catalog, pricebook
from orchestrator import books, choosing, settings
from orchestrator.errors import BadInput, OrchestrateError, flatten, raise_all
from orchestrator.settings import Flags
from orchestrator.spec import TrainingSpec
from orchestrator.tables import Column, cell, console, counted, print_pairs, print_table

_COLUMNS = (
    Column("cloud"),
    Column("machine"),
    Column("vCPU", right=True),
    Column("GiB", right=True),
    Column("GPUs"),
    Column("NVMe GB", right=True),
    Column("Gbps", right=True),
    Column("$/hour", right=True),
    Column("spot", right=True),
    Column("region"),
    Column("price of"),
)
_PRICES = (
    Column("$/hour", right=True),
    Column("region"),
    Column("market"),
    Column("component"),
    Column("price of"),
    Column("source", least=24),
)


@dataclass(frozen=True)
class Asked:
    """The flags of `machines`, unread."""

    machine: str | None = None
    backend: str | None = None
    regions: tuple[str, ...] = ()
    gpu: str | None = None
    max_usd: str | None = None
    config: Path | None = None
    all_machines: bool = False
    as_json: bool = False
    as_csv: bool = False


@dataclass(frozen=True)
class Entry:
    """A machine with its prices in one region: on demand and on spot, under the user's own terms."""

    machine: catalog.Machine
    region: str
    price: catalog.Price | None
    spot: catalog.Price | None

    @property
    def retired(self) -> str | None:
        found = catalog.retired(self.machine, self.region)
        return None if found is None else found.label


def run(asked: Asked) -> None:
    """Show what was asked for. Raises all that is wrong at once."""
    problems: list[OrchestrateError] = []
    if asked.as_json and asked.as_csv:
        problems.append(BadInput("--json and --csv are two formats", hint="leave one of them out"))
    folder = Path.cwd()
    try:
        spec = settings.load(Flags(), asked.config or settings.find_file(folder))
    except OrchestrateError as error:
        problems.extend(flatten([error]))
        spec = TrainingSpec()
    names = () if asked.machine is None else (asked.machine,)
    choice = choosing.choose(names, asked.backend, asked.regions, asked.gpu, problems, every=True)
    max_usd = choosing.amount("--max-usd", asked.max_usd, problems)
    raise_all(problems)
    with pricebook.using(books.book_for(spec)):
        entries = [_entry(machine, choice.regions.get(machine.cloud)) for machine in choice.machines]
        if max_usd is not None:
            entries = [entry for entry in entries if entry.price and entry.price.usd_per_hour <= max_usd]
        if asked.as_json:
            _print_json(entries, one=choice.named)
        elif asked.as_csv:
            _print_csv(entries)
        elif choice.named and entries:
            _show_one(entries[0], asked)
        else:
            _show_all(entries, asked)


def _entry(machine: catalog.Machine, region: str | None) -> Entry:
    book = pricebook.current()
    listed = book.price(machine, region)
    place = region or (listed.region if listed else catalog.DEFAULT_REGION[machine.cloud])
    spot = book.own_price(machine, book.price(machine, place, "spot"), place) if machine.cloud == "vertex" else None
    return Entry(machine, place, book.own_price(machine, listed, place), spot)


def _show_all(entries: Sequence[Entry], asked: Asked) -> None:
    out, every = console(), asked.all_machines
    shown = [entry for entry in entries if every or entry.price is not None]
    shown.sort(key=_order)
    gone = print_table(
        out, _COLUMNS, [[cell(word) for word in _words(entry)] for entry in shown],
        ("price of", "cloud", "Gbps", "NVMe GB", "region", "spot"),
    )  # fmt: skip
    unknown = sum(1 for entry in entries if entry.price is None)
    listed = "" if every or not unknown else "; --all lists those too"
    out.print(f"{counted(len(entries) - unknown, 'machine')} with a price, {unknown} whose price is unknown{listed}.")
    if any(entry.price and not entry.price.published for entry in shown):
        out.print("~ is derived from the machine's price outside the service; not published by it.")
    if any(entry.retired for entry in shown):
        out.print("† is being withdrawn there.")
    if any(entry.machine.cloud == "sagemaker" for entry in shown):
        out.print("SageMaker has no spot prices: the discount comes as fewer billable seconds, known afterwards.")
    if gone:
        out.print(f"Too narrow here to show: {', '.join(gone)}.")
    if shown:
        first = shown[0].machine
        one = _command(asked, "machines", first.name, cloud=first.cloud)
        filters = [word for name, value in (("--backend", asked.backend), ("--gpu", asked.gpu)) if value is not None
                   for word in (name, value)]  # fmt: skip
        out.print(cell(f"next: {one}   or: {_command(asked, 'estimate', '--hours', '2', *filters)}"))
    else:
        out.print("next: orchestrate machines --all")


def _command(asked: Asked, *words: str, cloud: str | None = None) -> str:
    """A command with the regions and the settings file that were typed. cloud: only its regions."""
    regions = [region for region in asked.regions if cloud is None or region in catalog.regions(cloud)]
    places = [word for region in regions for word in ("--region", region)]
    config = [] if asked.config is None else ["--config", str(asked.config)]
    return shlex.join(["orchestrate", *words, *places, *config])


def _order(entry: Entry) -> tuple[bool, Decimal, str]:
    return entry.price is None, entry.price.usd_per_hour if entry.price else Decimal(0), entry.machine.name


def _words(entry: Entry) -> tuple[str, ...]:
    machine, price = entry.machine, entry.price
    return (
        machine.cloud,
        machine.name + ("†" if entry.retired else ""),
        "-" if machine.vcpus is None else str(machine.vcpus),
        "-" if machine.memory_gib is None else f"{machine.memory_gib:g}",
        machine.gpus or "-",
        "-" if machine.local_nvme_gb is None else f"{machine.local_nvme_gb:,}",
        "-" if machine.network_gbps is None else f"{machine.network_gbps:g}",
        price.hourly if price else "unknown",
        entry.spot.hourly if entry.spot else "-",
        entry.region,
        price.dated if price else "-",
    )


def _show_one(entry: Entry, asked: Asked) -> None:
    """All that is known of one machine."""
    out = console()
    print_pairs(out, ((name, cell(words)) for name, words in _about(entry)))
    rows = catalog.prices(entry.machine)
    if rows:
        out.print("\n[bold]Every reading of its price[/]")
        print_table(out, _PRICES, [[cell(word) for word in _reading(price)] for price in rows], ("source", "component"))
    name, cloud = entry.machine.name, entry.machine.cloud
    if entry.price is None:
        out.print(cell(f"next: {_command(replace(asked, config=None), 'prices', 'refresh', '--cloud', cloud)}"))
    else:
        out.print(cell(f"next: {_command(asked, 'estimate', '--hours', '2', '--instance', name)}"))


def _about(entry: Entry) -> Iterator[tuple[str, str]]:
    machine, price = entry.machine, entry.price
    yield "machine", f"{machine.name} ({catalog.CLOUD_NAMES[machine.cloud]})"
    yield "hardware", machine.label
    if machine.local_nvme_gb:
        yield "local NVMe", f"{machine.local_nvme_gb:,} GB"
    if machine.network_gbps:
        yield "network", f"{machine.network_gbps:g} Gbps"
    yield "hardware from", f"{machine.source}, {machine.as_of}"
    yield "price", price.label + (f" = {price.formula}" if price.formula else "") if price else "unknown"
    if price:
        yield "price from", f"{price.component}: {price.source}"
        old = pricebook.days_old(price.as_of, datetime.now(UTC).date())
        if old is not None:
            yield "old", f"read {old} days ago: orchestrate prices refresh"
    if entry.spot:
        yield "spot", entry.spot.label + (f" = {entry.spot.formula}" if entry.spot.formula else "")
    if entry.retired:
        yield "withdrawn", entry.retired


def _reading(price: catalog.Price) -> tuple[str, ...]:
    return price.hourly, price.region, price.market.replace("_", " "), price.component, price.dated, price.source


def _json(entry: Entry) -> dict[str, Any]:
    machine, price = entry.machine, entry.price
    return {
        "machine": machine.name, "cloud": machine.cloud, "vcpus": machine.vcpus, "memory_gib": machine.memory_gib,
        "gpu": machine.gpu, "gpu_count": machine.gpu_count, "gpu_memory_gib": machine.gpu_memory_gib,
        "local_nvme_gb": machine.local_nvme_gb, "network_gbps": machine.network_gbps, "region": entry.region,
        "usd_per_hour": str(price.usd_per_hour) if price else None,
        "published": price.published if price else None,
        "formula": (price.formula or None) if price else None,
        "component": price.component if price else None,
        "as_of": price.dated if price else None,
        "source": price.source if price else None,
        "spot_usd_per_hour": str(entry.spot.usd_per_hour) if entry.spot else None,
        "retired": entry.retired,
    }  # fmt: skip


def _print_json(entries: Sequence[Entry], *, one: bool) -> None:
    from orchestrator.render import print_json

    described = [_json(entry) for entry in entries]
    if one:
        for entry, found in zip(entries, described, strict=True):
            found["prices"] = [
                {
                    "usd_per_hour": str(price.usd_per_hour), "region": price.region, "market": price.market,
                    "component": price.component, "as_of": price.dated, "grade": price.grade, "source": price.source,
                    "note": price.note or None,
                }
                for price in catalog.prices(entry.machine)
            ]  # fmt: skip
    print_json(described[0] if one else described)


def _print_csv(entries: Sequence[Entry]) -> None:
    described = [_json(entry) for entry in entries]
    writer = csv.DictWriter(sys.stdout, list(described[0]) if described else ["machine"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(described)
