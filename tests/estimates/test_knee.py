"""The cheapest, the fastest, and the knee between them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimates.knee import Marks, Point, marks

POSITIVE = st.decimals(min_value="0.0001", max_value="100000", places=4)
UNKNOWN_TOO = st.none() | POSITIVE
POINTS = st.lists(st.tuples(UNKNOWN_TOO, UNKNOWN_TOO), max_size=30)


def points(*pairs: tuple[str | None, str | None]) -> list[Point]:
    return [(None if hours is None else Decimal(hours), None if usd is None else Decimal(usd)) for hours, usd in pairs]


def beats(one: Point, other: Point) -> bool:
    """Is *one* as good as *other* in both, and better in one?"""
    (hours, usd), (other_hours, other_usd) = one, other
    assert hours is not None
    assert usd is not None
    assert other_hours is not None
    assert other_usd is not None
    return hours <= other_hours and usd <= other_usd and one != other


def test_nothing_is_marked_where_nothing_is_known() -> None:
    assert marks([]) == Marks(None, None, None)
    assert marks(points((None, "1"), ("1", None))) == Marks(None, None, None)


def test_the_knee_is_where_the_front_bends_towards_less_of_both() -> None:
    # From 8 h and $1 the price rises little down to 2 h, and then fourfold for the last halving.
    assert marks(points(("8", "1"), ("1", "8"), ("2", "1.5"), ("4", "1.2"))) == Marks(cheapest=0, fastest=1, knee=2)


def test_a_machine_that_is_slower_and_dearer_than_another_is_no_knee() -> None:
    assert marks(points(("8", "1"), ("1", "8"), ("2.1", "1.6"), ("2", "1.5"))).knee == 3


def test_two_machines_have_no_knee_between_them() -> None:
    assert marks(points(("8", "1"), ("1", "8"))) == Marks(cheapest=0, fastest=1, knee=None)


def test_a_front_without_a_bend_has_no_knee() -> None:
    assert marks(points(("1", "8"), ("2", "4"), ("4", "2"), ("8", "1"))).knee is None


def test_a_front_that_bends_the_wrong_way_has_no_knee() -> None:
    assert marks(points(("8", "1"), ("1", "8"), ("4", "7"))).knee is None


def test_of_two_equally_cheap_the_faster_and_of_two_equally_fast_the_cheaper_is_marked() -> None:
    assert marks(points(("3", "1"), ("2", "1"), ("1", "9"), ("1", "8"))) == Marks(cheapest=1, fastest=3, knee=None)


def test_of_equal_machines_the_first_is_marked() -> None:
    assert marks(points(("2", "2"), ("1", "1"), ("1", "1"))) == Marks(cheapest=1, fastest=1, knee=None)


def test_what_is_free_is_the_cheapest_and_takes_no_part_in_the_trade() -> None:
    found = marks(points(("9", "0"), ("8", "1"), ("1", "8"), ("2", "1.5")))
    assert found == Marks(cheapest=0, fastest=2, knee=3)


def test_machines_that_take_equally_long_have_a_cheapest_which_is_the_fastest_and_no_knee() -> None:
    assert marks(points(("2", "3"), ("2", "1"), ("2", "2"))) == Marks(cheapest=1, fastest=1, knee=None)


@given(POINTS)
def test_no_point_is_preferable_to_one_that_is_marked(asked: list[Point]) -> None:
    known = [point for point in asked if None not in point]
    found = marks(asked)
    for at in (found.cheapest, found.fastest, found.knee):
        assert (at is None) == (not known) or at is found.knee
        if at is not None:
            assert asked[at] in known
            assert not any(beats(other, asked[at]) for other in known)
    if found.knee is not None:
        assert len({found.cheapest, found.fastest, found.knee}) == 3


@given(POINTS)
def test_the_cheapest_costs_least_and_the_fastest_takes_least(asked: list[Point]) -> None:
    found = marks(asked)
    known = [(hours, usd) for hours, usd in asked if hours is not None and usd is not None]
    if known:
        assert found.cheapest is not None
        assert found.fastest is not None
        assert asked[found.cheapest][1] == min(usd for _, usd in known)
        assert asked[found.fastest][0] == min(hours for hours, _ in known)


@given(POINTS)
def test_unknown_points_move_no_mark(asked: list[Point]) -> None:
    at = [number for number, point in enumerate(asked) if None not in point]
    bare = marks([asked[number] for number in at])
    found = marks(asked)
    for all_at, bare_at in ((found.cheapest, bare.cheapest), (found.fastest, bare.fastest), (found.knee, bare.knee)):
        assert all_at == (None if bare_at is None else at[bare_at])


@given(POINTS, st.randoms(use_true_random=False))
def test_the_same_offers_in_another_order_have_the_same_marks(asked: list[Point], shuffle: object) -> None:
    order = list(range(len(asked)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    first, second = marks(asked), marks([asked[number] for number in order])
    for one, other in ((first.cheapest, second.cheapest), (first.fastest, second.fastest)):
        assert (None if one is None else asked[one]) == (None if other is None else asked[order[other]])


@given(POINTS, st.sampled_from(["0.01", "0.5", "2", "60", "3600"]))
def test_the_marks_do_not_depend_on_the_unit_or_the_currency(asked: list[Point], factor: str) -> None:
    def scaled(value: Decimal | None) -> Decimal | None:
        return None if value is None else value * Decimal(factor)

    plain = marks(asked)
    assert (plain.cheapest, plain.fastest) == (
        (other := marks([(scaled(hours), usd) for hours, usd in asked])).cheapest,
        other.fastest,
    )
    other = marks([(hours, scaled(usd)) for hours, usd in asked])
    assert (plain.cheapest, plain.fastest) == (other.cheapest, other.fastest)


@pytest.mark.parametrize("size", [3, 10, 60])
def test_the_knee_of_a_front_with_one_corner_is_that_corner(size: int) -> None:
    # An L: hours rise at nearly one price, then the price rises at nearly the same hours.
    flat = [(Decimal(2 + number), Decimal("1.01") - Decimal(number) / 10_000) for number in range(size)]
    steep = [(Decimal("1.99") - Decimal(number) / 10_000, Decimal(2 + number)) for number in range(size)]
    corner = (Decimal(2), Decimal("1.01"))
    asked: list[Point] = [*steep, *flat]
    at = marks(asked).knee
    assert at is not None
    assert asked[at] == corner
