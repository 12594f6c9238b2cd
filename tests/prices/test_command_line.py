"""`orchestrate prices` as it is typed, and what an estimate makes of what it read."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tests.conftest import Orchestrate
from tests.prices.listings import offer
from tests.prices.services import Service

PRICED = ("estimate", "mlp", "--hours", "1", "--instance", "ml.p3.2xlarge", "--region", "us-east-1", "--json")


@pytest.mark.slow
def test_refreshed_prices_lie_beside_the_shipped_ones_and_win_by_date(
    orchestrate: Orchestrate, home: Path, pricing: Service
) -> None:
    pricing.entries = [offer("ml.p3.2xlarge", "3.9")]
    before = orchestrate(*PRICED).json["rows"][0]
    answer = orchestrate("prices", "refresh", "--cloud", "sagemaker", "--region", "us-east-1")
    assert answer.code == 0, answer.err
    assert "ml.p3.2xlarge" in answer.out
    assert "next: orchestrate" in answer.out
    after = orchestrate(*PRICED).json["rows"][0]
    assert (before["price_usd_per_hour"], before["stale"]) == ("3.825", True)
    assert (Decimal(after["price_usd_per_hour"]), after["stale"]) == (Decimal("3.9"), False)
    assert "Price List" in after["price_source"]
    assert (home / "prices" / "sagemaker.csv").exists()
    assert orchestrate("prices", "diff", "--json").json
    (home / "prices" / "sagemaker.csv").write_text("cloud,machine\nnonsense\n")
    damaged = orchestrate(*PRICED)
    assert damaged.code == 2
    assert "sagemaker.csv" in damaged.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("refresh", "--cloud", "azure"), 3, "azure"),
        (("refresh", "--region", "mars"), 3, "mars"),
        (("import", "nothing.json"), 2, "nothing.json"),
        (("diff", "nothing.json"), 2, "nothing.json"),
    ],
)
@pytest.mark.usefixtures("home", "project")
def test_what_is_typed_wrong_is_one_line_and_a_remedy(
    words: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from orchestrator.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["prices", *words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    assert told in err
    assert not out


def test_without_a_login_it_says_what_to_do(
    home: Path, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["prices", "refresh", "--cloud", "sagemaker", "--region", "us-east-1"])
    assert ended.value.code == 77
    assert "aws" in capsys.readouterr().err
