"""Take a PyTorch script from a laptop to a managed cloud and back, with the bill known first."""

from __future__ import annotations

__version__ = "0.1.0"
_API = ("artifacts", "cancel", "dry_run", "estimate", "last_metrics", "list_runs", "logs", "resume", "status", "submit")
_INTEROP = ("model_trainer", "training_job")
__all__ = [*_API, *_INTEROP]  # noqa: PLE0604 - both are tuples of texts


def __getattr__(name: str) -> object:
    """The functions of orchestrator.api and of orchestrator.interop, loaded when the first of them is used."""
    if name in _API:
        from orchestrator import api

        return getattr(api, name)
    if name in _INTEROP:
        from orchestrator import interop

        return getattr(interop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
