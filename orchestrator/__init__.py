"""Take a PyTorch script from a laptop to a managed cloud and back, with the bill known first."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["artifacts", "cancel", "dry_run", "last_metrics", "list_runs", "logs", "status", "submit"]


def __getattr__(name: str) -> object:
    """The functions of orchestrator.api, loaded when the first of them is used."""
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
