"""Entries of both price lists, in the shapes that the services give them; the composite AWS item is of real parts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Json = Any
PREFIXES = {"us-east-1": "USE1", "us-west-2": "USW2", "eu-west-1": "EUW1", "us-east-2": "USE2"}
PLACES = {"us-central1": "Iowa", "europe-west4": "Netherlands"}


def offer(
    machine: str = "ml.m5.large",
    usd: str = "0.1150000000",
    region: str = "us-east-1",
    *,
    component: str | None = "Training",
    kind: str | None = "Training",
    usage: str = "Train",
    unit: str = "Hrs",
    **changed: str | None,
) -> dict[str, Json]:
    """An item of the Price List API. *changed* attributes replace the usual ones; None takes one away."""
    usage_type = f"{PREFIXES.get(region, 'XXX1')}-{usage}:{machine}"
    attributes = {
        "servicecode": "AmazonSageMaker",
        "regionCode": region,
        "location": "somewhere",
        "locationType": "AWS Region",
        "instanceName": machine,
        "instanceType": f"{machine}-{component}",
        "component": component,
        "platoinstancetype": kind,
        "platoinstancename": machine.split(".")[1] if "." in machine else "",
        "usagetype": usage_type,
        "operation": "RunInstance",
        "vCpu": "2",
        "memory": "8 GiB",
        "gpuMemory": "N/A",
    } | changed
    kept = {name: value for name, value in attributes.items() if value is not None}
    sku = f"SKU{zlib.crc32(repr((usd, unit, sorted(kept.items()))).encode()):012d}"
    dimension = {
        "unit": unit,
        "beginRange": "0",
        "endRange": "Inf",
        "appliesTo": [],
        "description": f"${usd} per {component} {machine} hour",
        "rateCode": f"{sku}.JRTCKXETXF.6YS6EN2CT7",
        "pricePerUnit": {"USD": usd},
    }
    term = {
        "priceDimensions": {f"{sku}.JRTCKXETXF.6YS6EN2CT7": dimension},
        "sku": sku,
        "effectiveDate": "2026-08-01T00:00:00Z",
        "offerTermCode": "JRTCKXETXF",
        "termAttributes": {},
    }
    return {
        "product": {"productFamily": "ML Instance", "attributes": kept, "sku": sku},
        "serviceCode": "AmazonSageMaker",
        "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": term}},
        "version": "20260801000000",
        "publicationDate": "2026-08-11T12:00:00Z",
    }


def storage(usd: str = "0.1540000000", region: str = "eu-west-1", what: str = "Training Job") -> dict[str, Json]:
    """The disk of a training job, as the description on a bill has it; its attributes were never seen."""
    item = offer("", usd, region, component=None, kind=None, unit="GB-Mo", instanceName=None, instanceType=None)
    item["product"]["productFamily"] = "ML Storage"
    item["product"]["attributes"] |= {"operation": "CreateVolume-Gp2", "usagetype": "EU-Train:VolumeUsage.gp2"}
    dimension(item)["description"] = f"${usd} per GB-Mo of {what} ML storage"
    return item


def term(item: Mapping[str, Json]) -> dict[str, Json]:
    (found,) = item["terms"]["OnDemand"].values()
    return found  # type: ignore[no-any-return]


def dimension(item: Mapping[str, Json]) -> dict[str, Json]:
    (found,) = term(item)["priceDimensions"].values()
    return found  # type: ignore[no-any-return]


def bulk(items: Iterable[Mapping[str, Json]], *, terms_first: bool = False, **changed: Json) -> str:
    """The bulk offer file with *items*: products and terms apart, joined by their SKU."""
    products, terms = {}, {}
    for item in items:
        sku = item["product"]["sku"]
        products[sku] = item["product"]
        terms[sku] = item["terms"]["OnDemand"]
    head = {
        "formatVersion": "v1.0",
        "disclaimer": "This pricing list is for informational purposes only.",
        "offerCode": "AmazonSageMaker",
        "version": "20261115120000",
        "publicationDate": "2026-11-15T12:00:00Z",
    }
    parts = [("products", products), ("terms", {"OnDemand": terms, "Reserved": {}}), ("attributesList", {})]
    if terms_first:
        parts = [parts[1], parts[0], parts[2]]
    return json.dumps({**head, **changed, **dict(parts)}, indent=2)


def sku(
    description: str,
    usd: str,
    regions: Iterable[str] = ("us-central1",),
    *,
    unit: str = "h",
    usage: str = "OnDemand",
    sku_id: str = "3F95-001E-B747",
    currency: str = "USD",
) -> dict[str, Json]:
    """A SKU of the Cloud Billing Catalog."""
    whole, _, part = usd.partition(".")
    price = {"currencyCode": currency, "units": whole, "nanos": int(part.ljust(9, "0"))}
    return {
        "name": f"services/C7E2-9256-1C43/skus/{sku_id}",
        "skuId": sku_id,
        "description": description,
        "category": {
            "serviceDisplayName": "Vertex AI",
            "resourceFamily": "Compute",
            "resourceGroup": "x",
            "usageType": usage,
        },
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit,
                    "displayQuantity": 1,
                    "tieredRates": [{"startUsageAmount": 0, "unitPrice": price}],
                    "baseUnit": "s",
                    "baseUnitConversionFactor": 3600,
                },
                "currencyConversionRate": 1,
                "effectiveTime": "2026-09-01T07:00:00.000Z",
            }
        ],
        "serviceProviderName": "Google",
    }


TRAINING = "Vertex AI: Training/Pipelines on"
# A real bill of August 2025: 8 H100, 208 vCPU and 1,872 GiB of an a3-highgpu-8g came to $101.007352 an hour.
A3_BILL = "101.007352"


def host(family: str, core: str, ram: str, regions: Iterable[str] = ("us-central1",)) -> list[dict[str, Json]]:
    """The two SKUs of a family's cores and memory."""
    regions = list(regions)
    return [
        sku(f"{TRAINING} {family} Core running in {PLACES[regions[0]]}", core, regions, sku_id=f"{family}-CORE"),
        sku(
            f"{TRAINING} {family} Ram running in {PLACES[regions[0]]}",
            ram,
            regions,
            unit="GiBy.h",
            sku_id=f"{family}-RAM",
        ),
    ]


def a3() -> list[dict[str, Json]]:
    return [
        sku(f"{TRAINING} NVIDIA H100 80GB in Iowa", "11.2660332"),
        sku(f"{TRAINING} A3 Instance Core in Iowa", "0.0293227", sku_id="2E83-99F1-391A"),
        sku(f"{TRAINING} A3 Instance RAM in Iowa", "0.0025534", unit="GiBy.h", sku_id="B045-9255-8314"),
    ]


def fees() -> list[dict[str, Json]]:
    """What is billed beside Compute Engine's own SKUs, and never beside those of training."""
    fee = "Vertex AI: Training/Pipelines management fee on"
    return [
        sku(f"{fee} NVIDIA H100 80GB in Iowa", "1.4694826", sku_id="5853-505F-A5C4"),
        sku(
            f"{fee.replace('management', 'Management')} A3 Instance Core in Iowa", "0.0038247", sku_id="9AC1-7D9B-C47E"
        ),
        sku(f"{fee} A3 Instance RAM in Iowa", "0.0003331", unit="GiBy.h", sku_id="D30D-69C9-F057"),
    ]


def n1(regions: Iterable[str] = ("us-central1",)) -> list[dict[str, Json]]:
    """Compute Engine's list rates and the 15 % of Vertex AI: $0.21849885 for an n1-standard-4, as Google's page has it."""
    return host("N1 Predefined Instance", "0.03635265", "0.00487255", regions)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
