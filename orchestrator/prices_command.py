"""What `orchestrate prices` does behind its flags: read prices anew, take them from a file, tell what changed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from estimates import accelerators, catalog, offers, pricebook, skus
from estimates.catalog import CLOUD_NAMES, Price
from estimates.offers import ListingError, PriceRow, Reading
from estimates.pricebook import Book
from orchestrator import books, pricefiles, render, settings
from orchestrator.errors import BadInput, CloudRefused, NotInCatalog, OrchestrateError, raise_all, shown
from orchestrator.tables import Column, cell, clean, console, print_table

SHOWN_CHANGES = 40
SHOWN_NAMES = 12
LEAST_PERCENT = Decimal("0.05")  # what would be shown as +0.0 %: the last digits of a derived price, for the most part
Progress = Callable[[str, int, int], None]


# Reading the services


def refresh(
    clouds: tuple[str, ...],
    regions: tuple[str, ...],
    all_regions: bool,
    profile: str | None,
    google_api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Read what training costs from the services of *clouds*, keep it, and show what that changed.

    One that fails does not take the other's prices along: they are kept and told before its error is raised.
    Raises NotInCatalog, LoginNeeded, CloudRefused, BadInput, StateError.
    """
    own_region = None
    if not clouds or "sagemaker" in clouds:
        profile, own_region = _own_settings(profile, asks_for_region=not (regions or all_regions))
    asked = _asked(clouds, regions, all_regions, own_region)
    before = books.listed()
    read: list[_Read] = []
    errors: list[OrchestrateError] = []
    with render.progress_bar() as progress:
        for cloud, wanted in asked.items():
            try:
                if cloud == "sagemaker":
                    reading = _of_aws(wanted, profile, progress)
                else:
                    reading = _of_google(wanted, google_api_key_file, progress)
                read.append(_kept(reading, wanted))
            except OrchestrateError as error:
                errors.append(error)
    if not errors or not as_json:  # of a command that fails, --json prints the errors, and one document
        _show(read, before, as_json)
    else:
        for one in read:
            print(clean("\n".join(one.lines())), file=sys.stderr)
    raise_all(errors)


def _own_settings(profile: str | None, *, asks_for_region: bool) -> tuple[str | None, str | None]:
    """The AWS profile of the command line, else of orchestrate.toml; the SageMaker region of that, else of this shell."""
    from orchestrator.aws import place

    file = settings.find_file(Path.cwd())
    spec = settings.load(settings.Flags(), file) if file else None
    profile = profile or (spec.cloud.profile if spec else None)
    if not asks_for_region:
        return profile, None
    if spec and spec.region in catalog.regions("sagemaker"):
        return profile, spec.region
    return profile, place.region_of(None, profile)


def _asked(
    clouds: Iterable[str], regions: Sequence[str], all_regions: bool, own_region: str | None
) -> dict[str, tuple[str, ...]]:
    """Each cloud to ask, with the regions to read there.

    Google's catalog has all regions in one list: where none is named, all are kept.
    """
    chosen = tuple(dict.fromkeys(clouds)) or tuple(CLOUD_NAMES)
    for cloud in chosen:
        if cloud not in CLOUD_NAMES:
            raise NotInCatalog(f"there is no cloud {shown(cloud)}", hint=f"--cloud {' or --cloud '.join(CLOUD_NAMES)}")
    if regions and all_regions:
        raise BadInput("--region and --all-regions exclude each other", hint="leave one of them out")
    if regions:
        raise_all(_no_such_region(region, chosen) for region in regions if not _clouds_of(region, chosen))
        named = {cloud: tuple(dict.fromkeys(r for r in regions if r in catalog.regions(cloud))) for cloud in chosen}
        return {cloud: found for cloud, found in named.items() if found}
    everywhere = {cloud: catalog.regions(cloud) for cloud in chosen}
    if "sagemaker" in everywhere:
        # The prices of AWS in China are another list, in yuan.
        known = tuple(region for region in everywhere["sagemaker"] if not region.startswith("cn-"))
        own = (own_region,) if own_region in known else ()
        everywhere["sagemaker"] = known if all_regions else own or _regions_with_prices("sagemaker")
    return everywhere


def _clouds_of(region: str, clouds: Iterable[str]) -> list[str]:
    return [cloud for cloud in clouds if region in catalog.regions(cloud)]


def _no_such_region(region: str, clouds: Sequence[str]) -> NotInCatalog:
    try:
        catalog.check_region(region, clouds[0])
    except catalog.CatalogError as error:
        return NotInCatalog(error.what, hint=error.hint)
    raise AssertionError(region)


def _regions_with_prices(cloud: str) -> tuple[str, ...]:
    """The regions of which the shipped book has published prices."""
    book = pricebook.shipped()
    rows = (price for (of, _), prices in book.machines.items() if of == cloud for price in prices if price.published)
    return tuple(sorted({price.region for price in rows}))


def _of_aws(regions: Sequence[str], profile: str | None, progress: Progress | None) -> Reading:
    from orchestrator.aws import pricelist

    source = "AWS Price List API (GetProducts), read by orchestrate prices refresh"
    items = pricelist.items(regions, profile=profile, report=progress)
    reading = _understood(lambda: offers.read(items, as_of=pricefiles.today(), source=source), "AWS's price list")
    if not reading.prices:
        where = ", ".join(regions)
        raise CloudRefused(f"AWS's price list has no price of SageMaker training in {where}", hint="another --region")
    return reading


def _of_google(regions: Sequence[str], key_file: Path | None, progress: Progress | None) -> Reading:
    from orchestrator import google_billing

    source = "Google Cloud Billing Catalog API, read by orchestrate prices refresh"
    listed = google_billing.skus(google_billing.api_key(key_file), report=progress)
    reading = _understood(
        lambda: skus.read(listed, as_of=pricefiles.today(), source=source), "Google's billing catalog"
    )
    prices = tuple(row for row in reading.prices if row.region in regions)
    rates = tuple(row for row in reading.rates if row.region in regions)
    if not prices:
        what = (
            f"Google's billing catalog has no price of a Vertex AI machine there: {pricefiles.counts(reading.ignored)}"
        )
        raise CloudRefused(what, hint="another --region; orchestrate prices diff shows what is known")
    return Reading("vertex", prices, rates, reading.ignored, reading.conflicts)


def _understood(read: Callable[[], Reading], what: str) -> Reading:
    try:
        return read()
    except ListingError as error:
        raise CloudRefused(f"{what} cannot be read: {error}", hint="the same command later") from error


def import_file(path: Path, as_json: bool) -> None:
    """Keep the prices of a file that was downloaded; which files are taken: see pricefiles.downloaded, also for errors."""
    before = books.listed()
    reading = pricefiles.downloaded(path, "orchestrate prices import")
    _show([_kept(reading, ())], before, as_json)


def diff(path: Path | None, as_json: bool) -> None:
    """Show what was refreshed against the shipped book, or what *path* has against the book that holds now."""
    if path is not None:
        reading = pricefiles.downloaded(path, "orchestrate prices diff")
        changes = _changes(reading.prices, books.listed())
        title = f"{path.name} against the prices that hold now"
        next_step = f"orchestrate prices import {render.shown_name(shlex.quote(str(path)))}"
    else:
        rows = [row for cloud in pricefiles.clouds() for row in pricefiles.prices(cloud)]
        changes = _changes(rows, pricebook.shipped())
        title, next_step = "what was refreshed against what was shipped", "orchestrate prices refresh"
        if not rows and not as_json:
            print("no prices were refreshed here: the shipped ones hold")
            print(f"next: {next_step}")
            return
    if as_json:
        render.print_json({"diff": changes.as_json()})
        return
    _print_changes(changes, title)
    print(f"next: {next_step}")


# What was read, and what became of it


@dataclass(frozen=True)
class _Read:
    """One reading, and where it is kept."""

    reading: Reading
    kept: pricefiles.Kept
    asked: tuple[str, ...]
    """The regions that were asked for; none of a file."""

    @property
    def regions(self) -> list[str]:
        return sorted({row.region for row in self.reading.prices})

    @property
    def machines(self) -> set[str]:
        return {row.machine for row in self.reading.prices}

    @property
    def strange(self) -> list[str]:
        """Machines that this version does not know."""
        known = {machine.name for machine in catalog.machines(self.reading.cloud)}
        return sorted(self.machines - known - {gpu.vertex_name for gpu in accelerators.accelerators().values()})

    @property
    def silent(self) -> list[str]:
        """Regions that were asked for and have no price: what is known of them stays."""
        return [region for region in self.asked if region not in self.regions]

    def lines(self) -> Iterator[str]:
        """What was read, in words, and with what is not as it should be."""
        reading = self.reading
        cloud, as_of = CLOUD_NAMES[reading.cloud], max(row.as_of for row in reading.prices)
        regions = self.regions[0] if len(self.regions) == 1 else f"{len(self.regions)} regions"
        what = f"{render.counted(len(reading.prices), 'price')} of {render.counted(len(self.machines), 'machine')}"
        disks = f", {render.counted(len(reading.rates), 'rate')} of disks" if reading.rates else ""
        yield f"{cloud}: {what} in {regions}{disks}, as of {as_of}, in {render.shown_path(self.kept.path)}"
        if self.silent and reading.cloud == "sagemaker":
            yield f"  no price is listed in {_some(self.silent)}: what is known of them stays as it is"
        if self.kept.newer_there:
            yield f"  older than what is there, and so left out: {_some(self.kept.newer_there)}"
        unpriced = [machine.name for machine in catalog.machines(reading.cloud) if machine.name not in self.machines]
        if unpriced:
            yield f"  {len(unpriced)} machines of the catalog have no price there, such as {_some(unpriced, 3)}"
        if self.strange:
            yield f"  not known to this version: {_some(self.strange)}"
        if reading.ignored:
            yield f"  left out: {pricefiles.counts(dict(_most(reading.ignored)))}"
        for conflict in reading.conflicts[:SHOWN_NAMES]:
            yield f"  prices that disagree: {conflict}"
        if len(reading.conflicts) > SHOWN_NAMES:
            yield f"  and {len(reading.conflicts) - SHOWN_NAMES} more that disagree: --json lists all"

    def as_json(self) -> dict[str, Any]:
        reading = self.reading
        return {
            "cloud": reading.cloud,
            "file": str(self.kept.path),
            "prices": len(reading.prices),
            "rates": len(reading.rates),
            "machines": len(self.machines),
            "regions": self.regions,
            "regions_without_prices": self.silent,
            "regions_newer_there": list(self.kept.newer_there),
            "as_of": max(row.as_of for row in reading.prices).isoformat(),
            "unknown_machines": self.strange,
            "left_out": dict(reading.ignored),
            "conflicts": list(reading.conflicts),
        }


def _kept(reading: Reading, asked: tuple[str, ...]) -> _Read:
    reading = pricefiles.believable(reading)
    return _Read(reading, pricefiles.keep(reading), asked)


def _most(ignored: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent reasons; the rest as one."""
    entries = sorted(ignored.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = sum(number for _, number in entries[SHOWN_NAMES:])
    return [*entries[:SHOWN_NAMES], *([("for other reasons (--json lists all)", rest)] if rest else [])]


def _some(names: Sequence[str], limit: int = SHOWN_NAMES) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def _show(read: Sequence[_Read], before: Book, as_json: bool) -> None:
    changes = _changes([row for one in read for row in one.reading.prices], before)
    if as_json:
        render.print_json({"read": [one.as_json() for one in read], "diff": changes.as_json()})
        return
    out = console()
    for one in read:
        for line in one.lines():
            out.print(cell(line), soft_wrap=True)
    if read:
        _print_changes(changes, "against the prices that held before")
        print("next: orchestrate estimate   or: orchestrate prices diff, against the shipped prices")


# What changed


@dataclass(frozen=True)
class _Change:
    """A machine's price in a region before and after; None: it had none, or is not listed any more."""

    cloud: str
    machine: str
    region: str
    market: str
    old: Price | None
    new: PriceRow | None

    @property
    def percent(self) -> Decimal | None:
        if self.old is None or self.new is None:
            return None
        return (self.new.usd_per_hour - self.old.usd_per_hour) / self.old.usd_per_hour * 100

    def as_json(self) -> dict[str, Any]:
        old, new, percent = self.old, self.new, self.percent
        return {
            "cloud": self.cloud,
            "machine": self.machine,
            "region": self.region,
            "market": self.market,
            "old_usd_per_hour": f"{old.usd_per_hour:f}" if old else None,
            "old_as_of": old.dated if old else None,
            "old_published": old.published if old else None,
            "new_usd_per_hour": f"{new.usd_per_hour:f}" if new else None,
            "new_as_of": new.as_of.isoformat() if new else None,
            "change_percent": None if percent is None else f"{percent:.2f}",
        }


@dataclass(frozen=True)
class _Changes:
    changed: tuple[_Change, ...]
    new: tuple[_Change, ...]
    gone: tuple[_Change, ...]
    unchanged: int

    def as_json(self) -> dict[str, Any]:
        lists = {"changed": self.changed, "new": self.new, "gone": self.gone}
        return {name: [one.as_json() for one in found] for name, found in lists.items()} | {"unchanged": self.unchanged}


def _changes(rows: Sequence[PriceRow], before: Book) -> _Changes:
    """*rows* against what *before* says of the same machines, regions and markets.

    Gone are the published training prices of those clouds and regions, on demand, that *rows* do not have.
    """
    found = [_Change(row.cloud, row.machine, row.region, row.market, _old(row, before), row) for row in rows]
    both = [one for one in found if one.old is not None]
    changed = sorted((one for one in both if one.percent), key=_by_size)
    listed = {(row.cloud, row.machine, row.region) for row in rows}
    places = {(row.cloud, row.region) for row in rows}
    gone = [
        _Change(cloud, name, region, "on_demand", _priced(before, cloud, name, region, "on_demand"), None)
        for (cloud, name), prices in sorted(before.machines.items())
        for region in sorted({price.region for price in prices if price.market == "on_demand" and price.published})
        if (cloud, region) in places and (cloud, name, region) not in listed
    ]
    new = [one for one in found if one.old is None]
    return _Changes(tuple(changed), tuple(new), tuple(one for one in gone if one.old), len(both) - len(changed))


def _by_size(one: _Change) -> tuple[Decimal, str, str]:
    return -abs(one.percent or Decimal(0)), one.machine, one.region


def _old(row: PriceRow, before: Book) -> Price | None:
    return _priced(before, row.cloud, row.machine, row.region, row.market)


def _priced(book: Book, cloud: str, name: str, region: str, market: str) -> Price | None:
    """What *book* says; None also for a machine or region that the catalog does not know."""
    try:
        return book.price(catalog.machine(name, cloud=cloud), region, market)
    except catalog.CatalogError:
        rows = [
            price for price in book.machines.get((cloud, name), ()) if (price.region, price.market) == (region, market)
        ]
        return max(rows, key=lambda price: price.as_of, default=None)


_COLUMNS = (
    Column("machine"),
    Column("region"),
    Column("old $/h", right=True),
    Column("new $/h", right=True),
    Column("change", right=True),
    Column("old of"),
    Column("new of"),
)


def _print_changes(changes: _Changes, title: str) -> None:
    """The changes, the greatest first, and how many prices are new, gone and as before."""
    out = console()
    heading = cell(f"\nChanges, {title}")
    heading.stylize("bold", 0, len("\nChanges"))
    out.print(heading, soft_wrap=True)
    notable = [one for one in changes.changed if abs(one.percent or Decimal(0)) >= LEAST_PERCENT]
    if notable:
        rows = [_words(one) for one in notable[:SHOWN_CHANGES]]
        print_table(out, _COLUMNS, [[cell(word) for word in row] for row in rows], ("old of", "new of"))
    if len(notable) > SHOWN_CHANGES:
        out.print(f"… and {len(notable) - SHOWN_CHANGES} more: --json lists all")
    slight = len(changes.changed) - len(notable)
    slightly = f", {slight} by less than {LEAST_PERCENT} %" if slight else ""
    out.print(f"{len(notable)} changed{slightly}, {render.counted(changes.unchanged, 'price')} as before")
    for name, found in (("new", changes.new), ("not listed any more", changes.gone)):
        if found:
            names = sorted({one.machine for one in found})
            out.print(cell(f"{name}: {render.counted(len(found), 'price')}, of {_some(names)}"), soft_wrap=True)


def _words(one: _Change) -> tuple[str, ...]:
    assert one.old is not None
    assert one.new is not None
    assert one.percent is not None
    derived = "" if one.old.published else "~"
    spot = " (spot)" if one.market == "spot" else ""
    return (
        one.machine + spot,
        one.region,
        f"{derived}{one.old.usd_per_hour:f}",
        f"{one.new.usd_per_hour:f}",
        f"{one.percent:+.1f} %",
        one.old.dated,
        one.new.as_of.isoformat(),
    )
