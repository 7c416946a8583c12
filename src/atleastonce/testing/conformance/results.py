"""The results of a conformance run, as they are kept: one JSON file per backend, stable between equal runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Verdict = Literal["pass", "not supported", "known gap", "fail"]


class Result(msgspec.Struct, frozen=True):
    """How one case ended. ``reason`` says what is missing, or why it is a known gap."""

    name: str
    section: str
    result: Verdict
    reason: str = ""


class Results(msgspec.Struct):
    """All cases of one backend, by id, and the broker they ran against."""

    backend: str
    broker: str
    cases: dict[str, Result] = msgspec.field(default_factory=dict)


def write(directory: Path, results: Results) -> None:
    """Write ``directory/<backend>.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    ordered = msgspec.structs.replace(results, cases=dict(sorted(results.cases.items())))
    path = directory / f"{results.backend}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")


def read(directory: Path) -> list[Results]:
    """All that was written into ``directory``, by backend.

    Raises:
        msgspec.ValidationError: a file that is no result.
    """
    return [msgspec.json.decode(path.read_bytes(), type=Results) for path in sorted(directory.glob("*.json"))]
