"""What a training job costs, in all its parts: a tree of quantity × unit × price, each low, expected and high.

Pure: a Job and a price Book in, a Bill out. Money and quantities are Decimals; nothing is rounded but begun seconds, which
count whole. What a request allows at most is another question: estimates.ceiling answers it.

When a cloud begins and ends to bill is from the SageMaker API's own text: from TrainingStartTime, once the machines are
there, to TrainingEndTime, after the results are uploaded. So the pull of the image, the download of the data and the upload
are billed as training is; waiting for machines is not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal, localcontext
from functools import cache, cached_property

from estimates import pricebook
from estimates.catalog import DEFAULT_REGION, TABLES, Machine, Price
from estimates.cost import prices_of
from estimates.pricebook import Book, Rate

SECONDS_PER_HOUR = 3600
HOURS_PER_MONTH = 730  # what AWS and Google divide a GB-month by: 8,760 hours a year, over 12
STORED_DAYS = 30
STORED_MONTHS = Decimal(STORED_DAYS * 24) / HOURS_PER_MONTH
DEFAULT_DISK_GB = {"sagemaker": 30, "vertex": 100}
ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Span:
    """One quantity as low, expected and high; all three are the same where it is known."""

    low: Decimal
    expected: Decimal
    high: Decimal

    @classmethod
    def of(cls, value: Decimal | int | str) -> Span:
        exact = Decimal(value)
        return cls(exact, exact, exact)

    @property
    def exact(self) -> bool:
        return self.low == self.high

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, other: Span | Decimal | int) -> Span:
        if not isinstance(other, Span):
            return Span(self.low * other, self.expected * other, self.high * other)
        return Span(self.low * other.low, self.expected * other.expected, self.high * other.high)

    def __truediv__(self, other: Span | int) -> Span:
        if not isinstance(other, Span):
            return Span(self.low / other, self.expected / other, self.high / other)
        return Span(self.low / other.low, self.expected / other.expected, self.high / other.high)

    def whole(self) -> Span:
        """Rounded up to whole units: a begun second is billed."""
        return Span(*(Decimal(math.ceil(part)) for part in (self.low, self.expected, self.high)))


NOTHING = Span(ZERO, ZERO, ZERO)


@dataclass(frozen=True, slots=True)
class Line:
    """One part of a bill: quantity × price = usd. A line with *lines* is their sum, and has neither quantity nor price.

    price and usd are None where the price is not known. An inexact price (spot) is a Span.
    """

    what: str
    quantity: Span | None = None
    unit: str = ""
    price: Span | None = None
    usd: Span | None = None
    published: bool = True
    as_of: str = ""
    region: str = ""
    source: str = ""
    note: str = ""
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Bill:
    """The whole: its lines, what they come to, and what is not in them."""

    lines: tuple[Line, ...]
    price: Price | None
    """Of one machine for an hour, as the user pays it; None: not known, and then there is no total."""
    listed: Price | None
    """The same without the user's own terms."""
    not_counted: tuple[str, ...]
    assumptions: tuple[str, ...] = ()

    @property
    def usd(self) -> Span | None:
        """USD of all lines; None where the machine's own price is not known."""
        return None if self.price is None else total(self.lines)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be reckoned. Sizes are GB of 10⁹ bytes (disks of Vertex AI: GiB); seconds are those of one machine.

    *seconds* are the script's own, unless one of these says that they are of earlier jobs, from the image's pull to the
    upload's end. billable: what the cloud billed for training, warm pools apart. around_included: their wall clock, which
    no spot discount is in yet; with billable, both are the same: the earlier jobs were on demand. held_seconds: the wall
    clock of earlier jobs on spot, whose billable seconds *seconds* are. data_region: where the data lies, if not in the
    job's region.
    """

    machine: Machine
    seconds: Span
    region: str | None = None
    count: int = 1
    spot: bool = False
    billable: bool = False
    disk_gb: int | None = None
    data_gb: Decimal = ZERO
    data_region: str | None = None
    results: Span | None = None
    logs: Span | None = None
    keep_alive_seconds: int = 0
    free_hours: Decimal = ZERO
    """Hours of the free tier that this account has left; none unless the user says so."""
    around_included: bool = False
    held_seconds: Span | None = None


def total(lines: Iterable[Line]) -> Span:
    """USD of all *lines* whose price is known."""
    found = NOTHING
    for line in lines:
        if line.usd is not None:
            found = found + line.usd
    return found


def spot_saving(training_seconds: Decimal | int, billable_seconds: Decimal | int) -> Decimal:
    """Percent that managed spot training saved, as AWS reckons it: (1 − billable / training) × 100."""
    return (1 - Decimal(billable_seconds) / Decimal(training_seconds)) * 100


def bill(job: Job, book: Book | None = None) -> Bill:
    """All that *job* is billed for, by the prices of *book* (default: the current one).

    Raises CatalogError if the cloud has no region of that name; ValueError if a quantity is negative or count is under 1.
    """
    book = book or pricebook.current()
    _check(job)
    price, listed = prices_of(job.machine, job.region, spot=job.spot, book=book)
    region = job.region or (listed.region if listed else DEFAULT_REGION[job.machine.cloud])
    reckoned = _Reckoning(job, book, region, price)
    with localcontext(rounding=ROUND_CEILING):
        lines = reckoned.lines()
    return Bill(lines, price, listed, reckoned.not_counted(lines), tuple(reckoned.assumed))


def _check(job: Job) -> None:
    if job.count < 1:
        raise ValueError(f"count is {job.count}, and at least one machine is needed")
    spans = (job.seconds,) if job.held_seconds is None else (job.seconds, job.held_seconds)
    parts = (job.data_gb, *(part for span in spans for part in (span.low, span.expected, span.high)))
    if any(not part.is_finite() or part < 0 for part in parts) or job.keep_alive_seconds < 0:
        raise ValueError("a job cannot take a negative time or amount")


class _Reckoning:
    """One bill in the making. A table makes hundreds of them: what several lines need is reckoned once."""

    def __init__(self, job: Job, book: Book, region: str, price: Price | None) -> None:
        self.job, self.book, self.region, self.price = job, book, region, price
        self.assumed: dict[str, None] = {}
        self.results = job.results or self._assume("results_size", "size of the results")
        self.around = () if job.billable or job.around_included else tuple(self._around())
        self.rate = self._rate()
        # A disk, and a machine on demand, cost as long as they are there; on spot less than that is billed.
        clock = job.seconds if job.held_seconds is None else job.held_seconds
        self.seconds = job.seconds if job.spot else clock
        held = clock + Span.of(job.keep_alive_seconds)
        for _, seconds in self.around:
            held = held + seconds
        self.held_hours = held.whole() / SECONDS_PER_HOUR

    def lines(self) -> tuple[Line, ...]:
        return (self._machines(), self._disk(), *self._free_tier(), *self._kept())

    # Machines

    def _machines(self) -> Line:
        job = self.job
        fraction = self._spot_fraction()
        lines = [
            self._hours(name, (seconds if fraction is None else seconds * fraction).whole())
            for name, seconds in ((self._measured(discounted=fraction is not None), self.seconds), *self.around)
        ]
        if job.keep_alive_seconds:
            lines.append(self._hours("warm pool afterwards, at most", Span.of(job.keep_alive_seconds)))
        count = "" if job.count == 1 else f"{job.count} × "
        return _sum(f"{count}{job.machine.name}{', spot' if job.spot else ''}", lines, self.price)

    def _measured(self, *, discounted: bool) -> str:
        """The line of the training, and what its seconds are."""
        job = self.job
        if job.billable and not discounted and self.seconds == job.seconds:
            return "training, by what earlier runs were billed"
        return "training, by the wall clock of earlier runs" if job.billable or job.around_included else "training"

    def _around(self) -> Iterator[tuple[str, Span]]:
        """The seconds that the cloud bills before and after the script's own."""
        job = self.job
        kind = "image_pull_gpu" if job.machine.gpu_count else "image_pull_cpu"
        yield "image pull", self._assume(kind, "pull of the image")
        if job.data_gb:
            rate = self._assume("download_rate", "download of the data")
            yield "download of the data", Span.of(job.data_gb) / rate
        yield "upload of the results", self.results / self._assume("upload_rate", "upload of the results")

    def _rate(self) -> Span | None:
        """USD an hour. A spot price of Compute Engine changes from month to month: on demand is the most it can be."""
        if self.price is None:
            return None
        usd = self.price.usd_per_hour
        if not (self.job.spot and self.job.machine.cloud == "vertex"):
            return Span.of(usd)
        own, _ = prices_of(self.job.machine, self.region, book=self.book)
        self.assumed["spot: the price changes from month to month; high is the price on demand"] = None
        return Span(usd, usd, max(usd, own.usd_per_hour if own else usd))

    def _spot_fraction(self) -> Span | None:
        """SageMaker's spot discount lies in the billable seconds, not in the rate: never in both."""
        job = self.job
        discounted = job.billable and not job.around_included
        if not job.spot or job.machine.cloud != "sagemaker" or discounted:
            return None
        return self._assume("spot_billable", "spot: billable over training seconds")

    def _hours(self, what: str, seconds: Span) -> Line:
        machines = seconds if self.job.count == 1 else seconds * self.job.count
        price = self.price
        # Divided last: hours × price would carry the rounding of hours into the next cent.
        usd = None if self.rate is None else machines * self.rate / SECONDS_PER_HOUR
        return Line(
            what, machines / SECONDS_PER_HOUR, "instance-hours", self.rate, usd,
            published=price is None or price.published,
            as_of=price.dated if price else "",
            region=price.region if price else self.region,
            source=price.source if price else "",
            note=price.formula if price else "price unknown",
        )  # fmt: skip

    # What is not a machine

    def _disk(self) -> Line:
        job = self.job
        size = DEFAULT_DISK_GB[job.machine.cloud] if job.disk_gb is None else job.disk_gb
        if job.machine.cloud == "sagemaker" and job.machine.local_nvme_gb:
            return Line("ML storage: none, the machine has local NVMe", NOTHING, "GB-month", usd=NOTHING)
        months = self.held_hours * (size * job.count) / HOURS_PER_MONTH
        if job.machine.cloud == "vertex":
            return self._line("boot disk (pd-ssd)", "pd_ssd", months)
        return self._line(f"ML storage, {size} GB a machine", "training_storage", months)

    def _kept(self) -> Iterator[Line]:
        """What stays behind: results and checkpoints for 30 days, logs, requests, data from elsewhere."""
        sagemaker = self.job.machine.cloud == "sagemaker"
        where, store = ("S3", "s3_standard") if sagemaker else ("Cloud Storage", "gcs_standard")
        yield self._line(f"results and checkpoints in {where}, {STORED_DAYS} days", store, self.results * STORED_MONTHS)
        yield self._line("logs taken in", "logs", self.job.logs or self._assume("log_size", "logs"))
        if sagemaker:
            yield self._line("requests to S3", "s3_put", self._assume("put_requests", "requests to S3") / 1000)
        if self.job.data_gb and self.job.data_region not in (None, self.region):
            data = Span.of(self.job.data_gb * self.job.count)
            yield self._line(f"data from {self.job.data_region}", "transfer_regions", data)

    def _free_tier(self) -> Iterator[Line]:
        free = self.book.free_tier(self.job.machine) if self.job.free_hours else None
        if free is None or self.rate is None or self.job.spot:
            return
        kept = Span.of(-Decimal(self.job.keep_alive_seconds) / SECONDS_PER_HOUR)
        used = (self.held_hours + kept) * self.job.count  # it is for training, not for a warm pool
        capped = Span(*(-min(hours, self.job.free_hours) for hours in (used.low, used.expected, used.high)))
        what = "free tier"
        yield Line(
            what,
            capped,
            "instance-hours",
            self.rate,
            capped * self.rate,
            source=free.source,
            as_of=free.as_of.isoformat(),
        )

    def _line(self, what: str, item: str, quantity: Span) -> Line:
        rate: Rate | None = self.book.rate(self.job.machine.cloud, item, self.region)
        if rate is None:
            return Line(what, quantity, "", note="price unknown")
        price = Span.of(rate.usd)
        return Line(
            what, quantity, rate.unit, price, quantity * price, published=rate.published, as_of=rate.dated,
            region=rate.region, source=rate.source, note=rate.note,
        )  # fmt: skip

    def _assume(self, name: str, words: str) -> Span:
        known = assumptions()[name]
        self.assumed[f"{words}: {known.label}"] = None
        return known.span

    def not_counted(self, lines: Iterable[Line]) -> tuple[str, ...]:
        """What a bill may also hold, in words."""
        said = ["taxes and support plans", "what the script itself calls or sends over the internet"]
        if self.job.machine.cloud == "sagemaker":
            said.append("the time to stop of a job that runs into its hard stop, KMS requests, NAT gateways of a VPC")
        else:
            said.append("Google states no granularity of billing for training: by the second is assumed")
        if self.job.spot:
            said.append("what a reclaimed machine had done since its last checkpoint, and does again")
        unknown = (line.what for line in lines if line.usd is None and not line.lines)
        return (*said, *(f"{what}: no price is known" for what in unknown))


def _sum(what: str, lines: Sequence[Line], price: Price | None) -> Line:
    usd = None if price is None else total(lines)
    return Line(what, usd=usd, lines=tuple(lines), published=price is None or price.published)


@dataclass(frozen=True)
class Assumption:
    """A figure that nobody publishes: a row of assumptions.csv."""

    span: Span
    unit: str
    source: str
    as_of: date
    note: str

    @cached_property
    def label(self) -> str:
        """`60 to 420 seconds, 150 expected (assumption of this project)`."""
        low, high = sorted((self.span.low, self.span.high))
        return f"{low:f} to {high:f} {self.unit}, {self.span.expected:f} expected ({self.source})"


@cache
def assumptions() -> dict[str, Assumption]:
    """Every row of assumptions.csv, by name."""
    with (TABLES / "assumptions.csv").open(encoding="utf-8", newline="") as lines:
        return {
            row["name"]: Assumption(
                Span(Decimal(row["low"]), Decimal(row["expected"]), Decimal(row["high"])),
                row["unit"], row["source"], date.fromisoformat(row["as_of"]), row["note"],
            )
            for row in csv.DictReader(lines)
        }  # fmt: skip
