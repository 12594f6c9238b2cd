"""The prices that a command reckons with: the shipped ones, those that were read since, and the user's own terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from estimates import catalog, pricebook
from estimates.pricebook import Book, Terms
from orchestrator import state
from orchestrator.errors import StateError
from orchestrator.spec import TrainingSpec


def listed() -> Book:
    """The shipped prices and those that were read since. Raises StateError where a file of the latter is damaged."""
    if not state.prices_dir().is_dir():
        return pricebook.shipped()
    try:
        return pricebook.read_files(state.prices_dir())
    except catalog.CatalogError as error:
        raise StateError(error.what, hint=error.hint) from error


def book_for(spec: TrainingSpec) -> Book:
    """The book of *spec*. Raises as listed does."""
    return listed().with_terms(Terms(dict(spec.spending.discounts), dict(spec.spending.contract)))


@contextmanager
def prices_of(spec: TrainingSpec) -> Iterator[Book]:
    """Reckon with the prices of *spec* within the block."""
    with pricebook.using(book_for(spec)) as book:
        yield book
