"""Which machines a cloud is taking out of service, and when each was last seen where: `catalog/retired.csv`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

from estimates.rows import DEFAULT_REGION, Machine, table


@dataclass(frozen=True, slots=True)
class Retirement:
    """A family that is being retired, in one region."""

    family: str
    region: str
    """`*`: in all regions of which no row tells more."""
    last_seen: date | None
    """When a list last had it in this region; None: no list of this region is on record."""
    seen_in: str
    missing_on: date | None
    """When the cloud's own list of this region was read and did not have it."""
    source: str
    as_of: date

    @property
    def label(self) -> str:
        """For people: `being retired; last seen 2025-11-04 (EC2's price list)`."""
        said = "being retired"
        if self.missing_on:
            said = f"not in the price list of {self.region} that was read on {self.missing_on}: retired there"
        if self.last_seen:
            said += f"; last seen {self.last_seen} ({self.seen_in})"
        return said


def retired(machine: Machine, region: str | None = None) -> Retirement | None:
    """What is known of the end of *machine* in *region* (default: the cloud's default region); None: nothing."""
    family = machine.name.rsplit(".", 1)[0]
    place = region or DEFAULT_REGION[machine.cloud]
    known = _retirements()
    return known.get((machine.cloud, family, place)) or known.get((machine.cloud, family, "*"))


@cache
def _retirements() -> dict[tuple[str, str, str], Retirement]:
    def day(text: str) -> date | None:
        return date.fromisoformat(text) if text else None

    return {
        (row["cloud"], row["family"], row["region"]): Retirement(
            family=row["family"],
            region=row["region"],
            last_seen=day(row["last_seen"]),
            seen_in=row["seen_in"],
            missing_on=day(row["missing_on"]),
            source=row["source"],
            as_of=date.fromisoformat(row["as_of"]),
        )
        for row in table("retired")
    }
