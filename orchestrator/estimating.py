"""An estimate as a value: for each machine its hours, where they come from, and its bill on demand and on spot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property

from estimates import bill as bills
from estimates import catalog, cost, knee, pricebook
from estimates.bill import Bill, Job, Span
from orchestrator.choosing import Choice
from orchestrator.history import Earlier, newest

SECONDS_PER_HOUR = 3600
NOT_KNOWN = "not known: priced for one hour"
NOT_PREDICTED = "how fast each machine would be is not predicted yet"


@dataclass(frozen=True)
class Typed:
    """What was typed, word for word: the commands that are named next repeat it."""

    script: str | None = None
    shared: tuple[str, ...] = ()  # options that a submit has too
    own: tuple[str, ...] = ()  # options of an estimate alone
    regions: tuple[str, ...] = ()
    data_region: str | None = None
    arguments: tuple[str, ...] | None = None  # behind --


@dataclass(frozen=True)
class Question:
    """What is to be estimated, apart from the machines."""

    script: str | None
    hours: Decimal | None  # as typed
    earlier: Mapping[str | None, Earlier] = field(default_factory=dict)
    count: int = 1
    spot: bool = False
    disk_gb: int | None = None
    data_gb: Decimal = Decimal(0)
    data_region: str | None = None
    results: Span | None = None
    keep_alive_seconds: int = 0
    free_hours: Decimal = Decimal(0)
    typed: Typed = field(default_factory=Typed)

    def job(self, machine: catalog.Machine, region: str | None) -> tuple[Job, str]:
        """The job on *machine*, and where its hours come from."""
        time = self._time(machine)
        job = Job(
            machine, time.seconds, region, count=self.count, spot=self.spot, billable=time.billable,
            disk_gb=self.disk_gb, data_gb=self.data_gb, data_region=self.data_region, results=self.results,
            keep_alive_seconds=self.keep_alive_seconds, free_hours=self.free_hours,
            around_included=time.around_included, held_seconds=time.held_seconds,
        )  # fmt: skip
        return job, time.words

    @property
    def known(self) -> bool:
        """Whether anything tells how long it takes."""
        return self.hours is not None or bool(self.earlier)

    def _time(self, machine: catalog.Machine) -> Earlier:
        """What is known of the time on *machine*."""
        if self.hours is not None:
            return Earlier(None, Span.of(self.hours * SECONDS_PER_HOUR), billable=False, words="as typed (--hours)")
        own = self.earlier.get(machine.name)
        if own is not None:
            return own
        other = newest(self.earlier)
        if other is None:
            return Earlier(None, Span.of(SECONDS_PER_HOUR), billable=False, words=NOT_KNOWN)
        words = f"as {other.words}: {NOT_PREDICTED}"
        return Earlier(None, other.wall_clock, billable=False, words=words, around_included=other.around_included)


@dataclass(frozen=True)
class Row:
    """One machine: its bills; hours are those of the script, or what was billed, where job.billable."""

    job: Job
    region: str
    hours_from: str
    on_demand: Bill
    book: pricebook.Book
    marks: tuple[str, ...] = ()

    @property
    def machine(self) -> catalog.Machine:
        return self.job.machine

    @cached_property
    def spot(self) -> Bill | None:
        """The bill on spot, which a table shows of few; None: no price for it is known."""
        found = bills.bill(dataclasses.replace(self.job, spot=True), self.book)
        return found if found.price is not None else None

    @property
    def hours(self) -> Decimal:
        return self.job.seconds.expected / SECONDS_PER_HOUR

    @property
    def price(self) -> catalog.Price | None:
        return self.on_demand.price

    @property
    def listed(self) -> catalog.Price | None:
        """The book's price, without the user's own terms."""
        return self.on_demand.listed

    @property
    def days_old(self) -> int | None:
        """How old its price is, where that has to be said."""
        listed = self.listed
        return None if listed is None else pricebook.days_old(listed.as_of, datetime.now(UTC).date())

    @property
    def retired(self) -> str | None:
        """What is known of its being withdrawn there."""
        found = catalog.retired(self.machine, self.region)
        return None if found is None else found.label

    def usd(self, *, spot: bool) -> Decimal | None:
        """Expected USD; None where no price is known."""
        chosen = self.spot if spot else self.on_demand
        return chosen.usd.expected if chosen and chosen.usd else None


def rows(question: Question, choice: Choice, *, max_usd: Decimal | None = None) -> tuple[Row, ...]:
    """A row for each machine, cheapest first, those without a price last; the cheapest, fastest and the knee marked."""
    found = [_row(question, machine, choice.regions.get(machine.cloud), choice.named) for machine in choice.machines]
    if max_usd is not None:
        found = [row for row in found if (usd := row.usd(spot=question.spot)) is not None and usd <= max_usd]
    found.sort(key=lambda row: _order(row, question.spot))
    return _marked(found, question) if question.known and len(found) > 1 else tuple(found)


def _row(question: Question, machine: catalog.Machine, region: str | None, named: bool) -> Row:
    job, words = question.job(machine, region)
    book = pricebook.current()
    own, _ = cost.prices_of(machine, region)
    # Of a machine without a price a table shows nothing: the parts of such a bill are reckoned only where it is named.
    on_demand = bills.bill(dataclasses.replace(job, spot=False), book) if own or named else Bill((), None, None, ())
    listed = on_demand.listed
    place = region or (listed.region if listed else catalog.DEFAULT_REGION[machine.cloud])
    return Row(job, place, words, on_demand, book)


def _order(row: Row, spot: bool) -> tuple[bool, Decimal, str]:
    usd = row.usd(spot=spot)
    return usd is None, usd or Decimal(0), row.machine.name


def _marked(found: Sequence[Row], question: Question) -> tuple[Row, ...]:
    """Cheapest, fastest and the knee between them; the last two only where the machines' hours differ."""
    marks = knee.marks([(row.hours, row.usd(spot=question.spot)) for row in found])
    at = {"cheapest": marks.cheapest}
    if len({row.hours for row in found}) > 1:
        at |= {"fastest": marks.fastest, "knee": marks.knee}
    return tuple(
        dataclasses.replace(row, marks=tuple(name for name, place in at.items() if place == number))
        for number, row in enumerate(found)
    )


def notes(question: Question, found: Sequence[Row]) -> tuple[str, ...]:
    """What has to be said of a table: prices that are old, derived, of other regions, or not known."""
    said = []
    priced = [row for row in found if row.price is not None]
    stale = [
        (listed.as_of, listed.dated, row.machine.name) for row in priced if row.days_old and (listed := row.listed)
    ]
    if stale:
        _, dated, name = min(stale)
        if len(stale) == 1:
            what = f"the price of {name} is over {pricebook.STALE_DAYS} days old, of {dated}"
        else:
            what = f"prices of {len(stale)} of {len(priced)} machines are over {pricebook.STALE_DAYS} days old"
            what += f", the oldest of {dated} ({name})"
        said.append(f"{what}: orchestrate prices refresh")
    derived = len([row for row in priced if row.price is not None and not row.price.published])
    if derived:
        are = "price is" if derived == 1 else "prices are"
        said.append(f"~ {derived} {are} derived from the machine's price outside the service, not published")
    if any(row.retired for row in found):
        said.append("† is being withdrawn there: orchestrate machines MACHINE says what is known")
    if question.count > 1:
        said.append(f"{question.count} machines: hours are as given or as measured, not divided")
    said.extend(free_tier_notes(question, found))
    return tuple(said)


def free_tier_notes(question: Question, found: Sequence[Row]) -> tuple[str, ...]:
    """Where the hours of the free tier that were typed lower no bill."""
    if not question.free_hours or not found:
        return ()
    if question.spot:
        return ("--free-tier lowers no bill here: none is known for spot",)
    with_one = [row.machine.name for row in found if row.book.free_tier(row.machine) is not None]
    if len(with_one) == len(found):
        return ()
    if with_one:
        return (
            f"--free-tier lowers the bill of {' and '.join(with_one)} alone: no other machine here has a free tier",
        )
    name = found[0].machine.name if len(found) == 1 else "none of these machines"
    return (f"--free-tier lowers no bill here: {name} has {'no' if len(found) == 1 else 'a'} free tier",)


def all_assumed(found: Iterable[Row], *, spot: bool) -> tuple[str, ...]:
    """Every assumption of the bills, each once."""
    chosen = [row.spot if spot else row.on_demand for row in found]
    return tuple(dict.fromkeys(said for one in chosen if one is not None for said in one.assumptions))


def all_not_counted(found: Iterable[Row]) -> tuple[str, ...]:
    """What no bill counts, each once."""
    return tuple(dict.fromkeys(said for row in found for said in row.on_demand.not_counted))
