"""What runs may cost (to be filled by the part on budgets)."""

from __future__ import annotations

from estimates import pricebook
from estimates.pricebook import Book
from orchestrator import state
from orchestrator.spec import TrainingSpec


def book_for(spec: TrainingSpec) -> Book:
    """The book to reckon with: the shipped one, what was refreshed since, and the user's own terms."""
    return pricebook.read_files(state.home() / "prices")
