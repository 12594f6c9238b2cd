"""Compares the tables of AWS's PyTorch images with the installed SageMaker SDK's data, and takes over what is new.

    python -m estimates.refresh_images            shows the difference; exits 1 if something is new
    python -m estimates.refresh_images --write    takes it over into the tables

Needs sagemaker-core and botocore (they come with the `sagemaker` extra), no credentials and no network; both are read as
files. An image that has left the data is shown and kept: it is still in its registry. For what an image was built (its
GPU architectures, and Python and CUDA where the tag does not tell) is added by hand, with its source: no data has it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from estimates.catalog import TABLES

FILES = ("pytorch.json", "pytorch-amzn2023.json")
OLDEST = (1, 13, 1)  # the first whose Python, 3.9, starts bootstrap.py
_INSTALL = "{} is not installed: pip install 'orchestrate-ml[sagemaker-sdk]'"
Row = dict[str, str]


@dataclass(frozen=True)
class Difference:
    """What the SDK's data has and the tables do not, and the other way round."""

    images: tuple[Row, ...]
    """New, or with another repository or tag."""
    registries: tuple[Row, ...]
    """New, or with another account, domain or versions."""
    gone: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.images or self.registries or self.gone)

    def __str__(self) -> str:
        lines = [
            f"+ PyTorch {row['torch']} {row['processor']}  {row['repository']}:{row['tag']}" for row in self.images
        ]
        lines += [f"+ {row['region']}  account {row['account']}: {row['torch']}" for row in self.registries]
        lines += [f"- {name}  is not in the data any more (its row stays)" for name in self.gone]
        return "\n".join(lines) or "the tables agree with the SDK"


def difference(images: Sequence[Row], registries: Sequence[Row], tables: Path = TABLES) -> Difference:
    """Compare the tables with *images* and *registries*, as `sdk_rows` gives them."""
    known = {_name(row): row for row in _read(tables / "images.csv")}
    places = {row["region"]: row for row in _read(tables / "image_registries.csv")}
    now = {_name(row) for row in images} | {row["region"] for row in registries}
    return Difference(
        images=tuple(row for row in images if not _agrees(row, known.get(_name(row)))),
        registries=tuple(row for row in registries if not _agrees(row, places.get(row["region"]))),
        gone=tuple(sorted((known.keys() | places.keys()) - now)),
    )


def take_over(found: Difference, source: str, tables: Path = TABLES) -> None:
    """Write what is new into the tables, with *source* and today as its origin; what was added by hand stays."""
    origin = {"source": source, "as_of": datetime.now(UTC).date().isoformat()}
    images = {_name(row): row for row in _read(tables / "images.csv")}
    for row in found.images:
        images[_name(row)] = {**images.get(_name(row), {}), **_filled(row), **origin}
    places = {row["region"]: row for row in _read(tables / "image_registries.csv")}
    for row in found.registries:
        places[row["region"]] = {**row, **origin}
    _write(tables / "images.csv", sorted(images.values(), key=lambda row: (_version(row["torch"]), row["processor"])))
    _write(tables / "image_registries.csv", [places[region] for region in sorted(places)])


def sdk_rows() -> tuple[list[Row], list[Row], str]:
    """Images and registries of the installed SDK's data, and that package's name and version.

    Raises ModuleNotFoundError if sagemaker-core or botocore is not installed.
    """
    core, botocore = _distribution("sagemaker-core"), _distribution("botocore")
    domains = _domains(Path(str(botocore.locate_file("botocore/data/partitions.json"))))
    images: list[Row] = []
    places: dict[str, Row] = {}
    for name in FILES:
        path = Path(str(core.locate_file("sagemaker/core/image_uri_config"))) / name
        versions = json.loads(path.read_text("utf-8"))["training"]["versions"]
        for torch, told in versions.items():
            if _version(torch) < OLDEST:
                continue
            images += _image_rows(torch, told)
            for region, account in told["registries"].items():
                domain = next((domain for regions, domain in domains if regions.fullmatch(region)), "")
                place = places.setdefault(region, {"region": region, "account": account, "domain": domain, "torch": ""})
                if place["account"] != account:
                    raise ValueError(f"two accounts in {region}: {account} (PyTorch {torch}) and {place['account']}")
                place["torch"] = f"{place['torch']} {torch}".strip()
    places = {region: place for region, place in places.items() if place["domain"]}
    return images, [places[region] for region in sorted(places)], f"image data of sagemaker-core {core.version}"


def _image_rows(torch: str, told: Mapping[str, Any]) -> Iterator[Row]:
    for processor in ("cpu", "gpu"):
        row = {"torch": torch, "processor": processor, "repository": str(told["repository"])}
        if "container_version" in told:  # the newer family: PyTorch, CUDA, operating system
            row["tag"] = f"{told['tag_prefix']}-{told['container_version'][processor]}"
        else:
            python = told["py_versions"][-1]
            row["tag"] = f"{torch}-{processor}-{python}"
            row["python"] = re.sub(r"py(\d)(\d+)", r"\1.\2", python)
        cuda = re.search(r"\bcu\d+\b", row["tag"])
        yield {**row, "cuda": cuda[0]} if cuda else row


def _domains(partitions: Path) -> list[tuple[re.Pattern[str], str]]:
    """For each partition of AWS the names of its regions and the end of its hosts' names."""
    told = json.loads(partitions.read_text("utf-8"))["partitions"]
    return [(re.compile(one["regionRegex"].strip("^$")), one["outputs"]["dnsSuffix"]) for one in told]


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(_INSTALL.format(name)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m estimates.refresh_images", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="take the difference over into the tables")
    write = parser.parse_args(arguments).write
    try:
        images, registries, source = sdk_rows()
    except ModuleNotFoundError as error:
        parser.error(str(error))
    found = difference(images, registries)
    print(f"{source}:\n{found}")
    if write:
        take_over(found, source)
    return 1 if (found.images or found.registries) and not write else 0


def _name(row: Row) -> str:
    return f"PyTorch {row['torch']} {row['processor']}"


def _agrees(row: Row, known: Row | None) -> bool:
    return known is not None and all(known[name] == text for name, text in row.items())


def _filled(row: Row) -> Row:
    return {name: text for name, text in row.items() if text}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _write(path: Path, rows: list[Row]) -> None:
    with path.open(encoding="utf-8", newline="") as lines:
        header = next(csv.reader(lines))
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, header, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
