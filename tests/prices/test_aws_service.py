"""What AWS's price list is asked, page by page, by the real client, and what its refusals mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.aws import pricelist
from orchestrator.aws.client import Aws
from orchestrator.errors import BadInput, CloudRefused, LoginNeeded, OrchestrateError
from tests.prices.listings import offer, storage
from tests.prices.services import Service, aws_fault


def names(regions: list[str], **options: str) -> list[str]:
    return [json.loads(item)["product"]["attributes"]["usagetype"] for item in pricelist.items(regions, **options)]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"MaxResults": 101}, "InvalidParameterException"),
        ({"NextToken": "made-up"}, "InvalidNextTokenException"),
        ({"ServiceCode": "AmazonNothing"}, "InvalidParameterException"),
        ({"FormatVersion": "aws_v2"}, "InvalidParameterException"),
        (
            {"Filters": [{"Type": "TERMMATCH", "Field": "component", "Value": "Training"}]},
            "InvalidParameterException",
        ),
    ],
)
def test_the_service_of_these_tests_refuses_what_the_real_one_does(
    pricing: Service, asked: dict[str, object], code: str
) -> None:
    from botocore.exceptions import ClientError

    with Aws("us-east-1") as aws, pytest.raises(ClientError) as caught:
        aws.client("pricing").get_products(**{"ServiceCode": "AmazonSageMaker", **asked})
    assert caught.value.response["Error"]["Code"] == code
    assert pricing.heard == []


def test_every_page_is_read_and_nothing_but_what_was_asked_for(pricing: Service) -> None:
    machines = [f"ml.m5.{size}" for size in ("large", "xlarge", "2xlarge", "4xlarge", "12xlarge")]
    spot = offer("ml.g5.xlarge", "1.4", component="SpotTraining", kind="SpotTraining", usage="SpotTraining")
    pricing.entries = [
        *(offer(machine) for machine in machines),
        offer("ml.m5.large", component="Hosting", kind="Hosting", usage="Host"),
        offer("ml.m5.large", region="us-west-2"),
        spot,
        storage(region="us-east-1"),
    ]
    assert names(["us-east-1"]) == [
        *(f"USE1-Train:{machine}" for machine in machines),
        "USE1-SpotTraining:ml.g5.xlarge",
        "EU-Train:VolumeUsage.gp2",
    ]
    assert [asked.get("NextToken") for asked in pricing.heard] == [None, "page-2", "page-4", None, None]
    assert {asked["MaxResults"] for asked in pricing.heard} == {100}


def test_each_region_is_asked_for_and_progress_is_told(pricing: Service) -> None:
    pricing.entries = [offer("ml.m5.large", region=region) for region in ("us-east-1", "us-west-2", "eu-west-1")]
    told: list[tuple[int, int]] = []
    found = list(pricelist.items(["us-west-2", "eu-west-1"], report=lambda _, done, total: told.append((done, total))))
    assert [json.loads(item)["product"]["attributes"]["regionCode"] for item in found] == ["us-west-2", "eu-west-1"]
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_region_without_the_machine_gives_an_empty_list(pricing: Service) -> None:
    pricing.entries = [offer("ml.p3.2xlarge", "3.825")]
    assert names(["us-west-2"]) == []


@pytest.mark.parametrize(
    ("region", "endpoint"),
    [
        ("us-east-1", "us-east-1"),
        ("sa-east-1", "us-east-1"),
        ("eu-west-1", "eu-central-1"),
        ("ap-northeast-1", "ap-south-1"),
    ],
)
def test_the_nearest_endpoint_is_asked(region: str, endpoint: str) -> None:
    assert pricelist.endpoint_region([region]) == endpoint


def test_the_services_own_endpoints_are_in_those_regions() -> None:
    import botocore.session

    session = botocore.session.Session()
    known = set(session.get_available_regions("pricing"))
    assert known >= {pricelist.endpoint_region([f"{place}-east-1"]) for place in ("us", "eu", "ap", "af", "me", "ca")}


def test_a_token_that_has_expired_begins_the_question_anew_and_doubles_nothing(pricing: Service) -> None:
    pricing.entries = [offer(f"ml.m5.{size}") for size in ("large", "xlarge", "2xlarge")]
    pricing.faults = {1: aws_fault("ExpiredNextTokenException", "the token has expired")}
    assert names(["us-east-1"]) == [f"USE1-Train:ml.m5.{size}" for size in ("large", "xlarge", "2xlarge")]
    assert [asked.get("NextToken") for asked in pricing.heard][:3] == [None, None, "page-2"]


def test_a_list_that_does_not_end_is_given_up(pricing: Service) -> None:
    pricing.entries = [offer(f"ml.m5.{size}") for size in ("large", "xlarge", "2xlarge", "4xlarge")]
    pricing.forever, pricing.page_size = True, 1
    with pytest.raises(CloudRefused, match="does not come to an end"):
        names(["us-east-1"])


def refused(regions: list[str], **options: str) -> OrchestrateError:
    with pytest.raises(OrchestrateError) as caught:
        names(regions, **options)
    return caught.value


@pytest.mark.parametrize(
    ("code", "message", "kind", "hint"),
    [
        (
            "AccessDeniedException",
            "User is not authorized to perform: pricing:GetProducts",
            CloudRefused,
            "GetProducts",
        ),
        (
            "ExpiredTokenException",
            "The security token included in the request is expired",
            LoginNeeded,
            "aws sso login",
        ),
        ("UnrecognizedClientException", "The security token is not valid.", LoginNeeded, "prices import FILE"),
        ("InvalidNextTokenException", "NextToken is invalid", CloudRefused, ""),
        ("InvalidParameterException", "Invalid ServiceCode", CloudRefused, "prices refresh"),
        ("NotFoundException", "no such thing", CloudRefused, "prices refresh"),
    ],
)
def test_a_refusal_is_told_with_what_helps(
    pricing: Service, code: str, message: str, kind: type[OrchestrateError], hint: str
) -> None:
    pricing.faults = {0: aws_fault(code, message)}
    error = refused(["us-east-1"])
    assert type(error) is kind
    assert "price list of us-east-1" in error.what
    assert error.hint is not None
    assert hint in error.hint
    assert "--fallback" not in error.hint
    assert "submit" not in error.hint


def test_without_a_login_nothing_is_sent_and_the_way_without_one_is_named(
    pricing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = refused(["us-east-1"])
    assert isinstance(error, LoginNeeded)
    assert "aws configure" in str(error.hint)
    assert "orchestrate prices import FILE" in str(error.hint)
    assert pricing.requests == 0


def test_a_profile_that_there_is_not_is_named(pricing: Service, tmp_path: Path) -> None:
    error = refused(["us-east-1"], profile="of-nobody")
    assert isinstance(error, BadInput)
    assert "'of-nobody'" in error.what


def test_a_service_that_cannot_be_reached_is_told_in_one_line(
    pricing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    error = refused(["us-east-1"])
    assert isinstance(error, CloudRefused)
    assert "cannot be reached" in error.what
