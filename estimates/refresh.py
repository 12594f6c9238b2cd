"""Compares the catalog's SageMaker types with the API model of the installed botocore, and takes over what is new.

    python -m estimates.refresh            shows the difference; exits 1 if there is one
    python -m estimates.refresh --write    adds the new types to the tables, their hardware left blank

Needs botocore (it comes with the `sagemaker` extra), no credentials and no network. A type that has left the API is
shown and kept: its row is history. Prices are added by hand, a row a reading.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from estimates.catalog import TABLES

TRAINING = "TrainingInstanceType"
SERVES = {
    "InstanceType": "notebooks",
    "ProductionVariantInstanceType": "endpoints",
    "TransformInstanceType": "batch transform",
    "AppInstanceType": "Studio apps",
    "ClusterInstanceType": "HyperPod clusters",
}


@dataclass(frozen=True)
class Difference:
    """What the API model has and the tables do not, and the other way round."""

    trains: tuple[str, ...]
    """Can train, not in machines.csv."""
    gone: tuple[str, ...]
    """In machines.csv, but cannot train any more."""
    serves: Mapping[str, str]
    """Can never have trained, and not or otherwise in not_for_training.csv: type → what it serves, parted by `; `."""

    def __bool__(self) -> bool:
        return bool(self.trains or self.gone or self.serves)

    def __str__(self) -> str:
        lines = [f"+ {name}  can train" for name in self.trains]
        lines += [f"- {name}  cannot train any more (its row stays)" for name in self.gone]
        lines += [f"~ {name}  serves {serves}" for name, serves in self.serves.items()]
        return "\n".join(lines) or "the tables agree with the API"


def difference(enums: Mapping[str, Sequence[str]], tables: Path = TABLES) -> Difference:
    """Compare the tables with the API's lists of instance types, by the name of the list."""
    trains = set(enums[TRAINING])
    serves: dict[str, str] = {}
    for kind, use in SERVES.items():
        for name in enums[kind]:
            if name.startswith("ml.") and name not in trains:
                serves[name] = f"{serves[name]}; {use}" if name in serves else use
    known = {row["machine"] for row in _read(tables / "machines.csv") if row["cloud"] == "sagemaker"}
    told = {row["machine"]: row["serves"] for row in _read(tables / "not_for_training.csv")}
    return Difference(
        trains=tuple(sorted(trains - known)),
        gone=tuple(sorted(known - trains)),
        serves={name: use for name, use in sorted(serves.items()) if name not in known and told.get(name) != use},
    )


def take_over(found: Difference, source: str, tables: Path = TABLES) -> None:
    """Write what is new into the tables, with *source* and today as its origin; hardware not known yet stays blank."""
    today = datetime.now(UTC).date().isoformat()

    def renewed(row: Mapping[str, str], **changes: str) -> dict[str, str]:
        origin = f"{row['source']}; {source}" if row else source
        return {**row, **changes, "source": origin, "as_of": today}

    served = {row["machine"]: row for row in _read(tables / "not_for_training.csv")}
    machines = _read(tables / "machines.csv")
    machines += [renewed(served.pop(name, {}), cloud="sagemaker", machine=name) for name in found.trains]
    served |= {name: renewed(served.get(name, {}), machine=name, serves=use) for name, use in found.serves.items()}
    _write(tables / "machines.csv", machines)
    _write(tables / "not_for_training.csv", list(served.values()))


def api_enums() -> tuple[dict[str, list[str]], str]:
    """The instance type lists of the installed botocore's SageMaker model, and that model's name and version.

    Raises ModuleNotFoundError if botocore is not installed.
    """
    spec = importlib.util.find_spec("botocore")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("botocore is not installed: pip install 'orchestrate-ml[sagemaker]'")
    # Read as data: importing botocore would only find the same file.
    model = sorted(Path(spec.origin).parent.glob("data/sagemaker/*/service-2.json.gz"))[-1]
    shapes: dict[str, dict[str, Any]] = json.loads(gzip.decompress(model.read_bytes()))["shapes"]
    version = importlib.metadata.version("botocore")
    return {name: shapes[name]["enum"] for name in (TRAINING, *SERVES)}, f"SageMaker API model in botocore {version}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m estimates.refresh", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="add the new types to the tables")
    write = parser.parse_args(arguments).write
    try:
        enums, source = api_enums()
    except ModuleNotFoundError as error:
        parser.error(str(error))
    found = difference(enums)
    print(f"{source}:\n{found}")
    if write:
        take_over(found, source)
    return 1 if found and not write else 0


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
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
