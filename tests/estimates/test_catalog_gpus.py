"""Machines of Vertex AI with GPUs attached: what a name means, what it costs, and what is said to one that is wrong."""

from __future__ import annotations

from decimal import Decimal

import pytest

from estimates import accelerators, catalog, pricebook
from estimates.catalog import CatalogError
from estimates.pricebook import Book


def refused(name: str, cloud: str | None = None) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        catalog.machine(name, cloud=cloud)
    return caught.value


def test_a_host_with_a_gpu_is_a_machine() -> None:
    machine = catalog.machine("n1-standard-8+V100")
    assert machine.label == "8 vCPU, 30 GiB, 1 × V100 16 GiB"
    assert (machine.cloud, machine.gpu, machine.gpu_count) == ("vertex", "V100", 1)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("n1-standard-8+1xV100", "n1-standard-8+V100"),
        ("n1-standard-8+v100", "n1-standard-8+V100"),
        ("n1-standard-8+2xNVIDIA_TESLA_T4", "n1-standard-8+2xT4"),
        ("n1-highmem-16+4XT4", "n1-highmem-16+4xT4"),
    ],
)
def test_one_machine_has_one_name_however_it_is_typed(typed: str, name: str) -> None:
    assert catalog.machine(typed).name == name


def test_the_price_is_the_hosts_and_the_gpus_and_says_how() -> None:
    host = catalog.price(catalog.machine("n1-standard-8"))
    both = catalog.price(catalog.machine("n1-standard-8+2xT4"))
    assert host
    assert both
    assert both.usd_per_hour - host.usd_per_hour == 2 * Decimal("0.42") / Decimal("1.20") * Decimal("1.15")
    assert both.formula == "Compute Engine $0.379998 × 1.15 + 2 × T4 (Dataflow $0.42 / 1.20 × 1.15)"
    assert not both.published
    assert both.as_of == min(host.as_of, accelerators.accelerators()["T4"].as_of)


def test_with_a_published_host_the_sum_is_still_derived() -> None:
    host = catalog.price(catalog.machine("n1-standard-4"))
    both = catalog.price(catalog.machine("n1-standard-4+T4"))
    assert host
    assert both
    assert (host.published, both.published, both.component) == (True, False, "derived")


def test_two_published_prices_make_a_published_one() -> None:
    machine = catalog.machine("n1-standard-4+2xT4")
    one = catalog.prices(catalog.machine("n1-standard-4"))
    book = Book({("vertex", "n1-standard-4"): one, ("vertex", "NVIDIA_TESLA_T4"): one})
    price = book.price(machine, "us-central1")
    assert price
    assert price.published
    assert price.usd_per_hour == 3 * one[0].usd_per_hour


def test_where_no_price_of_the_gpu_is_known_there_is_none_of_the_machine() -> None:
    machine = catalog.machine("n1-standard-8+V100")
    book = pricebook.shipped()
    assert book.price(catalog.machine("n1-standard-8"), "europe-west4")
    assert book.price(machine, "europe-west4") is None
    assert book.price(machine, market="spot") is None


def test_the_plain_machines_stay_what_they_are() -> None:
    assert len(catalog.machines("vertex")) == 92
    assert not [machine for machine in catalog.machines() if "+" in machine.name]


def test_what_is_listed_can_be_had_by_name_and_has_a_price_and_vcpus_enough() -> None:
    listed = catalog.attachable()
    assert len({machine.name for machine in listed}) == len(listed)
    assert {machine.gpu for machine in listed} == {"T4", "P4", "P100", "V100"}
    for machine in listed:
        assert catalog.machine(machine.name) == machine
        assert catalog.price(machine), machine.name
        most = accelerators.accelerators()[machine.gpu or ""].vcpus_at_most[machine.gpu_count]
        assert 4 * machine.gpu_count <= (machine.vcpus or 0) <= most, machine.name


@pytest.mark.parametrize(
    ("name", "what", "instance"),
    [
        ("n1-standard-8+A100", "A100 cannot be attached on Vertex AI: it comes with machines", "a2-highgpu-1g"),
        ("n1-standard-8+X9", "no GPU called 'X9' can be attached", "n1-standard-8+T4"),
        ("n1-standard-8+", "no GPU called '' can be attached", "n1-standard-8+T4"),
        ("n1-standard-8+99999xT4", "no GPU called '99999xT4' can be attached", "n1-standard-8+T4"),
        ("n1-standard-8+8xT4", "8 × T4 cannot be attached to a machine of Vertex AI (but 1, 2, 4)", "n1-standard-8+4xT4"),
        ("n1-standard-8+3xV100", "3 × V100 cannot be attached", "n1-standard-8+4xV100"),
        ("n1-standard-8+0xT4", "0 × T4 cannot be attached", "n1-standard-8+T4"),
        ("n1-standard-16+V100", "1 × V100 goes with at most 12 vCPUs; n1-standard-16 has 16", "n1-standard-16+2xV100"),
        ("e2-standard-8+T4", "a GPU can be attached to N1 machines of Vertex AI, not to 'e2-standard-8'", "n1-standard-8+T4"),
        ("n1-standrd-8+V100", "not to 'n1-standrd-8'", "n1-standard-8+V100"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_told_the_nearest_that_can_be_had(name: str, what: str, instance: str) -> None:
    error = refused(name)
    assert what in error.what
    assert error.hint.split()[:2] == ["--instance", instance]
    assert catalog.machine(instance)


def test_of_sagemaker_it_is_no_machine() -> None:
    error = refused("n1-standard-8+V100", "sagemaker")
    assert error.what == "'n1-standard-8+V100' is a machine of Vertex AI, not of SageMaker"
    assert catalog.machine(error.hint.split()[1], cloud="sagemaker").gpu_count == 1
    assert "--backend vertex for n1-standard-8+V100" in error.hint
    assert refused("n1-standard-8+X9", "sagemaker").what.startswith("no training machine of SageMaker")
