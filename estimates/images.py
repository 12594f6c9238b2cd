"""Which of AWS's PyTorch images a training job on SageMaker runs in: by region, by GPU, by version of PyTorch.

The tables lie in `catalog/`. `python -m estimates.refresh_images` compares them with the SageMaker SDK's own data.

    images.csv            AWS's training images, one row a version and processor; what each was built for, where known
    image_registries.csv  whose registry has them in a region, and which versions
    image_gpus.csv        the compute capability of each GPU

An image runs on a GPU if its PyTorch was built for the GPU's architecture. Where no source tells, that is not known, and
such an image is only taken if there is no other, or it was asked for by its version.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from functools import cache

from estimates.catalog import TABLES, CatalogError

OWN_IMAGE = "--image URI, of an image of your own"


@dataclass(frozen=True, slots=True)
class Image:
    """One container image. python and cuda are "" where not known, and cuda for the CPU."""

    uri: str
    torch: str
    python: str
    cuda: str
    """As in the image's tag: `cu126`."""
    repository: str
    account: str
    source: str
    as_of: date
    note: str = ""
    """What is not known about it, for whoever is shown the choice."""


def find(region: str, *, gpu: str | None, torch: str | None = None) -> Image:
    """The newest image in *region* that runs on *gpu* (a model as in machines.csv; None: no GPU).

    torch: `2.6` or `2.6.0`, where not the newest is wanted. Raises CatalogError if there is none.
    """
    if gpu is not None and gpu.startswith(("Trainium", "Inferentia")):
        raise CatalogError(f"AWS's PyTorch images do not run on {gpu}, which needs Neuron's", OWN_IMAGE)
    registry = _registries().get(region)
    if registry is None:
        raise CatalogError(f"no PyTorch image of AWS's is known in region {region!r}", OWN_IMAGE)
    there = [row for row in _images("cpu" if gpu is None else "gpu") if row["torch"] in registry["torch"].split()]
    wanted = [row for row in there if torch is None or _is(row["torch"], torch)]
    if not wanted:
        raise CatalogError(f"no image with PyTorch {torch} is known in {region}", f"--torch {_some(there)}")
    if gpu is None:
        return _image(wanted[0], registry)
    fits = {row["torch"]: runs_on(row["gpu_architectures"], gpu) for row in there}
    known = [row for row in wanted if fits[row["torch"]]]
    unknown = [row for row in wanted if fits[row["torch"]] is None]
    if known:
        return _image(known[0], registry)
    if unknown:
        return _image(
            unknown[0], registry, f"whether PyTorch {unknown[0]['torch']} of AWS's runs on a {gpu} is not known"
        )
    runs = [row for row in there if fits[row["torch"]]]
    capability = _capabilities()[gpu]
    what = f"PyTorch {torch or there[0]['torch']} of AWS's has no code for a {gpu} (compute capability {capability})"
    raise CatalogError(what, f"--torch {_some(runs)}" if runs else OWN_IMAGE)


def runs_on(architectures: str, gpu: str) -> bool | None:
    """Does code that was built for *architectures* (`7.0? 7.5 8.0+PTX`) run on *gpu*? None: not known.

    Code for 8.0 runs on 8.6 and not on 9.0; what has `+PTX` is compiled on the spot for all that came later. Of one with
    a `?` the sources differ.
    """
    capability = _capabilities().get(gpu)
    if not architectures or capability is None:
        return None
    have = _version(capability)
    answers = set()
    for word in architectures.split():
        built = _version(word.removesuffix("?").removesuffix("+PTX"))
        if built <= have and (built[0] == have[0] or "+PTX" in word):
            answers.add(None if word.endswith("?") else True)
    return True if True in answers else None if answers else False


def _image(row: dict[str, str], registry: dict[str, str], note: str = "") -> Image:
    return Image(
        uri=f"{registry['account']}.dkr.ecr.{registry['region']}.{registry['domain']}/{row['repository']}:{row['tag']}",
        torch=row["torch"],
        python=row["python"],
        cuda=row["cuda"],
        repository=row["repository"],
        account=registry["account"],
        source=row["source"],
        as_of=date.fromisoformat(row["as_of"]),
        note=note,
    )


def _is(version: str, wanted: str) -> bool:
    """Is *version* the *wanted* one, of which the last parts may be left out or be zero?"""
    have, want = version.split("."), wanted.split(".")
    return have[: len(want)] == want or (have == want[: len(have)] and not any(int(part) for part in want[len(have) :]))


def _some(rows: list[dict[str, str]]) -> str:
    """The newest of *rows*' versions to type, and the oldest."""
    minors = list(dict.fromkeys(".".join(row["torch"].split(".")[:2]) for row in rows))
    return minors[0] if len(minors) == 1 else f"{minors[0]} (there are {', '.join(minors)})"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


@cache
def _images(processor: str) -> tuple[dict[str, str], ...]:
    """Newest first."""
    rows = [row for row in _table("images") if row["processor"] == processor]
    return tuple(sorted(rows, key=lambda row: _version(row["torch"]), reverse=True))


@cache
def _registries() -> dict[str, dict[str, str]]:
    return {row["region"]: row for row in _table("image_registries")}


@cache
def _capabilities() -> dict[str, str]:
    return {row["gpu"]: row["compute_capability"] for row in _table("image_gpus")}


def _table(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
