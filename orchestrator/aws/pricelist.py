"""AWS's price list, asked region by region through the Price List API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.aws import explain
from orchestrator.aws.client import Aws
from orchestrator.errors import CloudRefused, LoginNeeded, OrchestrateError

SERVICE = "AmazonSageMaker"
PAGE = 100  # the API gives no more
MOST_PAGES = 1000
# The service answers from three regions of AWS for all of them; the nearest is asked.
_ENDPOINT_REGIONS = {
    "eu": "eu-central-1",
    "il": "eu-central-1",
    "af": "eu-central-1",
    "me": "ap-south-1",
    "ap": "ap-south-1",
}
# What a job is billed by: its machines, those of spot, and the disks attached to them. The bill groups disks by their
# operation; the API's item of one was never seen, so that what comes is told apart by its description.
_QUESTIONS = (
    {"productFamily": "ML Instance", "component": "Training"},
    {"productFamily": "ML Instance", "platoinstancetype": "SpotTraining"},
    {"operation": "CreateVolume-Gp2"},
)
Report = Callable[[str, int, int], None]


def items(regions: Sequence[str], *, profile: str | None = None, report: Report | None = None) -> Iterator[str]:
    """The entries of the price list that can concern training in *regions*, as JSON texts.

    Raises LoginNeeded, CloudRefused or BadInput, each with what helps.
    """
    with Aws(endpoint_region(regions), profile=profile) as aws:
        for number, region in enumerate(regions):
            if report is not None:
                report("SageMaker's price list", number, len(regions))
            for question in _QUESTIONS:
                yield from _answers(aws, {**question, "regionCode": region}, region, profile)
        if report is not None:
            report("SageMaker's price list", len(regions), len(regions))


def endpoint_region(regions: Sequence[str]) -> str:
    """The region whose endpoint of the price list is near to the first of *regions*."""
    return _ENDPOINT_REGIONS.get(regions[0].split("-")[0], "us-east-1") if regions else "us-east-1"


def _answers(aws: Aws, question: dict[str, str], region: str, profile: str | None) -> Iterator[str]:
    client: Any = aws.client("pricing", attempts=4, read_timeout=30)
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in question.items()]
    asked: dict[str, Any] = {"ServiceCode": SERVICE, "Filters": filters, "FormatVersion": "aws_v1", "MaxResults": PAGE}
    found: list[str] = []
    for begun_anew in (False, True):
        try:
            found = list(_pages(client, asked))
            break
        except CloudRefused:
            raise
        except Exception as error:
            # A token holds for some time only: who was slow begins once more.
            if type(error).__name__ == "ExpiredNextTokenException" and not begun_anew:
                continue
            raise _refusal(error, region, profile) from error
    yield from found


def _pages(client: Any, asked: dict[str, Any]) -> Iterator[str]:
    token = None
    for _ in range(MOST_PAGES):
        answer = client.get_products(**asked, **({"NextToken": token} if token else {}))
        if "PriceList" not in answer and "FormatVersion" not in answer:
            # botocore takes a body that it cannot read, such as a proxy's page, for an answer that says nothing.
            raise CloudRefused(
                "AWS's price list answers with something else than prices", hint="the same command later"
            )
        yield from answer.get("PriceList", ())
        before, token = token, answer.get("NextToken")
        if not token:
            return
        if token == before:
            break
    raise CloudRefused("AWS's price list does not come to an end", hint="the same command later")


def _refusal(error: Exception, region: str, profile: str | None) -> OrchestrateError:
    context = {"profile": profile} if profile else {}
    told = explain.refusal(error, doing=f"read AWS's price list of {region}", context=context)
    offline = "or without a login: orchestrate prices import FILE, the offer file of the region"
    if isinstance(told, LoginNeeded):
        login = (told.hint or "").split("; --fallback")[0]
        return LoginNeeded(told.what, hint=f"{login}; {offline}")
    hints = {
        explain.Kind.DENIED: f"have pricing:GetProducts allowed; {offline}",
        explain.Kind.INVALID: "orchestrate prices refresh --region us-east-1",
        explain.Kind.AMBIGUOUS: "the same command again: prices are only read",
        explain.Kind.MISSING: "orchestrate prices refresh --region us-east-1",
    }
    return type(told)(told.what, hint=hints.get(explain.classify(error), told.hint))
