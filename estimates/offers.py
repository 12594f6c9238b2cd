"""What AWS's price list says of SageMaker training, as rows of the price book.

The price list comes as items of the Price List API (`pricing:GetProducts`) or as the bulk offer file of a region. Both
list one machine many times over: for endpoints, notebooks, clusters, reservations, for nothing. Only what a training
job is billed by becomes a row; what is left out is counted, by reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, TextIO

Json = Any
Path = tuple[str | int, ...]


class ListingError(ValueError):
    """A price list that cannot be read; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class PriceRow:
    """A row of prices.csv."""

    cloud: str
    machine: str
    region: str
    market: str
    component: str
    usd_per_hour: Decimal
    as_of: date
    as_of_precision: str
    grade: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class RateRow:
    """A row of rates.csv."""

    cloud: str
    item: str
    region: str
    usd: Decimal
    unit: str
    as_of: date
    as_of_precision: str
    source: str
    published: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one price list gave: rows, and in words and numbers what became none."""

    cloud: str
    prices: tuple[PriceRow, ...]
    rates: tuple[RateRow, ...]
    ignored: Mapping[str, int]
    """Why entries of the list are no row → how many."""
    conflicts: tuple[str, ...] = ()
    """Prices of one thing that disagree, and which was taken."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """One entry of the list that is a price of training."""

    name: str
    """The machine, or "" for the storage of a training job."""
    region: str
    market: str
    usd: Decimal
    usage_type: str
    is_plain: bool
    """Whether its own names say that it is the training rate: instanceName, and a usage type of Train:."""


class _Ignored(Exception):
    """Why an entry is no row."""


_READ = ("component", "platoinstancetype", "instanceName", "instanceType", "usagetype", "regionCode")
_STORAGE = re.compile(r"\bper GB-Mo of Training Job ML storage\b", re.IGNORECASE)
_TYPE = re.compile(r"ml\.[a-z0-9-]+\.[a-z0-9-]+")


def read(items: Iterable[Mapping[str, Json] | str], *, as_of: date, source: str) -> Reading:
    """The training prices among *items* of the Price List API, each a JSON text or what it says.

    Raises ListingError if an item is not a JSON object.
    """
    found: list[_Listed] = []
    ignored: Counter[str] = Counter()
    for item in items:
        try:
            found.append(_listed(_item(item), as_of))
        except _Ignored as reason:
            ignored[str(reason)] += 1
    prices: list[PriceRow] = []
    rates: list[RateRow] = []
    conflicts: list[str] = []
    for (name, region, market), entries in sorted(_grouped(found).items()):
        one = _one_of(entries, conflicts)
        told = (as_of, "day")
        if name:
            component = "Training" if market == "on_demand" else "SpotTraining"
            note = one.usage_type
            prices.append(PriceRow("sagemaker", name, region, market, component, one.usd, *told, "A", source, note))
        else:
            rates.append(
                RateRow(
                    "sagemaker", "training_storage", region, one.usd, "GB-month", *told, source, True, one.usage_type
                )
            )
    return Reading("sagemaker", tuple(prices), tuple(rates), dict(ignored), tuple(conflicts))


def _item(item: Mapping[str, Json] | str) -> Mapping[str, Json]:
    value: Json = item
    if isinstance(item, str):
        try:
            value = json.loads(item)
        except (ValueError, RecursionError) as error:
            raise ListingError(f"an entry of the price list is not JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise ListingError(f"an entry of the price list is not an object but {type(value).__name__}")
    return value


def _listed(item: Mapping[str, Json], as_of: date) -> _Listed:
    """*item* as a training price. Raises _Ignored with the reason why it is none."""
    product = _table(item.get("product"))
    told = _table(product.get("attributes"))
    said = {name: " ".join(value.split()) for name, value in told.items() if isinstance(value, str)}
    usage_type = said.get("usagetype", "")
    dimensions = [one for one in _dimensions(item, as_of) if one.get("unit") == "GB-Mo"]
    if any(_STORAGE.search(str(one.get("description"))) for one in dimensions):
        return _Listed("", _region(said), "", _usd(dimensions), usage_type, "Train:" in usage_type)
    market = _market(said)
    # A component that is not stated is no training rate: a training plan's upfront fee has none, and is lower than it.
    if market is None:
        names = (said.get(name, "") for name in ("component", "platoinstancetype"))
        raise _Ignored(f"for something else: {' / '.join(filter(None, names)) or 'nothing stated'}"[:80])
    if "free" in said.get("platoinstancetype", "").lower():
        raise _Ignored("free")
    hours = [one for one in _dimensions(item, as_of) if one.get("unit") == "Hrs"]
    if not hours:
        raise _Ignored("not priced by the hour")
    is_plain = said.get("instanceName", "").startswith("ml.") and "Train:" in usage_type
    return _Listed(_machine(said), _region(said), market, _usd(hours), usage_type, is_plain)


def _market(said: Mapping[str, str]) -> str | None:
    """Which of the two rates of training an entry is, if it is one."""
    component, kind = (said.get(name, "") for name in ("component", "platoinstancetype"))
    if "SpotTraining" in (component, kind):
        return "spot"
    return "on_demand" if component == "Training" and kind in ("", "N/A", "NA", "Training", *_free(kind)) else None


def _free(kind: str) -> tuple[str, ...]:
    return (kind,) if "free" in kind.lower() else ()


def _machine(said: Mapping[str, str]) -> str:
    # instanceType may be "NA", or the type with -Training behind it; instanceName and the usage type have it bare.
    for text in (
        said.get("instanceName", ""),
        said.get("usagetype", "").rpartition(":")[2],
        said.get("instanceType", ""),
    ):
        bare = text.removesuffix("-Training")
        if _TYPE.fullmatch(bare):
            return bare
    raise _Ignored("no machine named")


def _region(said: Mapping[str, str]) -> str:
    region = said.get("regionCode", "")
    if not re.fullmatch(r"[a-z]{2,}(-[a-z]+)+-\d+", region):
        raise _Ignored("no region named")
    return region


def _dimensions(item: Mapping[str, Json], as_of: date) -> list[Mapping[str, Json]]:
    """The price dimensions of the on-demand term that is in effect on *as_of*; reservations are not among them."""
    terms = [_table(term) for term in _table(_table(item.get("terms")).get("OnDemand")).values()]
    begun = [term for term in terms if str(term.get("effectiveDate", ""))[:10] <= as_of.isoformat()]
    latest = max(begun, key=lambda term: str(term.get("effectiveDate", "")), default={})
    return [_table(one) for one in _table(latest.get("priceDimensions")).values()]


def _usd(dimensions: Sequence[Mapping[str, Json]]) -> Decimal:
    """The price of the first unit that is not free."""
    prices = []
    for dimension in dimensions:
        told = _table(dimension.get("pricePerUnit"))
        if "USD" not in told:
            raise _Ignored("not priced in USD")
        try:
            usd, begin = Decimal(str(told["USD"])), Decimal(str(dimension.get("beginRange", "0")))
        except InvalidOperation:
            raise _Ignored("a price that is no number") from None
        if not usd.is_finite() or usd < 0 or not begin.is_finite():
            raise _Ignored("a price that is no number")
        if usd > 0:
            prices.append((begin, usd))
    if not prices:
        raise _Ignored("free")
    return _trimmed(min(prices)[1])


def _trimmed(usd: Decimal) -> Decimal:
    """*usd* without the zeros behind it: the price list writes ten places."""
    return Decimal(f"{usd:f}".rstrip("0").rstrip(".")) if "." in f"{usd:f}" else usd


def _grouped(found: Iterable[_Listed]) -> dict[tuple[str, str, str], list[_Listed]]:
    groups: dict[tuple[str, str, str], list[_Listed]] = {}
    for one in found:
        groups.setdefault((one.name, one.region, one.market), []).append(one)
    return groups


def _one_of(entries: Sequence[_Listed], conflicts: list[str]) -> _Listed:
    """The entry to go by: of those that plainly are the training rate, else of all, the dearest."""
    plain = [one for one in entries if one.is_plain] or entries
    chosen = max(plain, key=lambda one: (one.usd, one.usage_type))
    if len({one.usd for one in entries}) > 1:
        others = sorted({f"${one.usd} ({one.usage_type})" for one in entries if one.usd != chosen.usd})
        name = chosen.name or "storage of training jobs"
        conflicts.append(
            f"{name} in {chosen.region}: ${chosen.usd} ({chosen.usage_type}) taken, also {', '.join(others)}"
        )
    return chosen


def _table(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


# The bulk offer file


def bulk_items(open_text: Callable[[], TextIO]) -> Iterator[dict[str, Json]]:
    """The entries of a bulk offer file that can concern training, in the shape of the Price List API's items.

    Read piece by piece: such a file can have hundreds of megabytes, of which training is a small part.
    Raises ListingError where the file is not JSON.
    """
    wanted: dict[str, Json] = {}
    terms: dict[str, Json] = {}
    terms_first = False
    with open_text() as text:
        for path, value in walk(text, _descend_offer):
            if len(path) == 3 and path[1] == "products" and _may_concern_training(_table(value)):
                wanted[str(path[2])] = _slim(_table(value))
            elif path[1:3] == ("terms", "OnDemand") and len(path) == 4:
                terms_first |= not wanted
                if path[3] in wanted:
                    terms[str(path[3])] = value
    if terms_first:
        with open_text() as text:
            terms |= {str(path[-1]): value for path, value in walk(text, _descend_offer) if _is_term(path, wanted)}
    for sku, product in wanted.items():
        yield {"product": product, "terms": {"OnDemand": terms.get(sku, {})}}


def _is_term(path: Path, wanted: Mapping[str, Json]) -> bool:
    return len(path) == 4 and path[1:3] == ("terms", "OnDemand") and path[3] in wanted


def _descend_offer(path: Path) -> bool:
    return len(path) < (3 if path[1:2] == ("products",) else 4)


def _may_concern_training(product: Mapping[str, Json]) -> bool:
    said = _table(product.get("attributes"))
    names = (str(said.get(name, "")) for name in ("component", "platoinstancetype", "usagetype", "operation"))
    # The storage of a training job tells only in its price's description that it is that.
    return any("train" in name.lower() for name in names) or not str(said.get("instanceName", "")).startswith("ml.")


def _slim(product: Mapping[str, Json]) -> dict[str, Json]:
    said = _table(product.get("attributes"))
    return {"attributes": {name: said[name] for name in _READ if name in said}}


def answered_items(open_text: Callable[[], TextIO]) -> Iterator[str]:
    """The items in a kept answer of GetProducts, such as `aws pricing get-products` prints it.

    Raises ListingError where the file is not JSON, or the answer is one of several pages.
    """
    with open_text() as text:
        for path, value in walk(text, lambda path: len(path) == 1 or path[1:] == ("PriceList",)):
            if path[1:2] == ("PriceList",) and len(path) == 3:
                yield value
            elif path[1:] == ("NextToken",) and value:
                raise ListingError("it is one page of several: NextToken names a further one")


@dataclass(frozen=True, slots=True)
class Head:
    """What the beginning of a file tells of it."""

    kind: str
    """`bulk`: an offer file; `answer`: of GetProducts; `skus`: of Google's billing catalog; "" for anything else."""
    offer: str
    """Of an offer file, the service that it is of: `AmazonSageMaker`."""
    published: date | None
    version: str


_KINDS = {"offerCode": "bulk", "products": "bulk", "PriceList": "answer", "skus": "skus", "skuId": "skus"}


def head(beginning: str) -> Head:
    """Tell what kind of price list a file is from its *beginning*."""
    mark = re.search(rf'"({"|".join(_KINDS)})"\s*:', beginning)
    kind = _KINDS[mark[1]] if mark and beginning.lstrip()[:1] in ("{", "[") else ""

    def told(key: str) -> str:
        found = re.search(rf'"{key}"\s*:\s*"([^"\\]{{1,80}})"', beginning)
        return found[1] if found else ""

    try:
        published = date.fromisoformat(told("publicationDate")[:10])
    except ValueError:
        published = None
    return Head(kind, told("offerCode"), published, told("version")) if kind == "bulk" else Head(kind, "", None, "")


# JSON, piece by piece

CHUNK = 1 << 20
LONGEST_VALUE = 16 << 20
_DECODER = json.JSONDecoder()
_LETTER = re.compile(r"[^ \t\r\n]")


def walk(text: TextIO, descend: Callable[[Path], bool]) -> Iterator[tuple[Path, Json]]:
    """Every value of the JSON documents in *text*, one behind the other, with its path: document, keys, positions.

    Objects and lists for whose path *descend* says so are taken apart, the rest comes whole. Values that come whole are
    at most LONGEST_VALUE characters long, so that what is not JSON does not fill the memory.
    Raises ListingError, with the place, where *text* is not JSON.
    """
    stream = _Stream(text)
    number = 0
    while stream.peek():
        yield from _walk(stream, (number,), descend)
        number += 1


def _walk(stream: _Stream, path: Path, descend: Callable[[Path], bool]) -> Iterator[tuple[Path, Json]]:
    opening = stream.peek()
    if opening not in ("{", "[") or not descend(path):
        yield path, stream.value()
        return
    stream.take(opening)
    closing = "}" if opening == "{" else "]"
    number = 0
    while stream.peek() != closing:
        if number:
            stream.take(",")
        key: str | int = number
        if opening == "{":
            key = stream.key()
        yield from _walk(stream, (*path, key), descend)
        number += 1
    stream.take(closing)


class _Stream:
    """A text of which no more than is needed is in memory."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._buffer, self._at, self._before, self._ended = text, "", 0, 0, False

    def peek(self) -> str:
        """The next letter that is no space; "" at the end."""
        while True:
            letter = _LETTER.search(self._buffer, self._at)
            self._at = letter.start() if letter else len(self._buffer)
            if letter or not self._more(CHUNK):
                return letter[0] if letter else ""

    def take(self, letter: str) -> None:
        if self.peek() != letter:
            raise self._wrong(f"{letter!r} expected")
        self._at += 1

    def key(self) -> str:
        if self.peek() != '"':
            raise self._wrong("a key expected")
        key: str = self.value()
        self.take(":")
        return key

    def value(self) -> Json:
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._at)
                # A number that ends with the buffer, or just before a dot or an exponent there, may go on behind it.
                if self._buffer[end : end + 1] not in ("", *".eE+-") or not self._more(CHUNK):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at > LONGEST_VALUE or not self._more(size):
                    raise self._wrong(error.msg) from error
                size *= 2
            except RecursionError as error:
                raise self._wrong("nested too deeply") from error

    def _more(self, size: int) -> bool:
        """Read on; False at the end of the text."""
        if self._ended:
            return False
        more = self._text.read(size)
        self._ended = not more
        self._buffer, self._before, self._at = self._buffer[self._at :] + more, self._before + self._at, 0
        return bool(more)

    def _wrong(self, why: str) -> ListingError:
        return ListingError(f"not JSON at character {self._before + self._at + 1:,}: {why}")
