"""Price services on loopback, and an environment that knows no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prices.services import API_KEY, Billing, Pricing, Service, running


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login of either cloud, no region, and no proxy between here and here."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "CLOUDSDK_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    # Where a test forgets its service, nothing goes out.
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:1")
    monkeypatch.setenv("ORCHESTRATE_GOOGLE_BILLING_URL", "http://127.0.0.1:1")


@pytest.fixture
def pricing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """AWS's price list, and a login that it takes."""
    with running(Pricing) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", service.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield service


@pytest.fixture
def billing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Google's billing catalog, and a key that it takes."""
    with running(Billing) as service:
        monkeypatch.setenv("ORCHESTRATE_GOOGLE_BILLING_URL", service.url)
        monkeypatch.setenv("GOOGLE_API_KEY", API_KEY)
        monkeypatch.setattr("orchestrator.google_billing.PAUSE_SECONDS", 0)
        yield service
