"""What `up` has started: one directory and one record per broker, written before the start and after it.

Layout of a state directory: `<name>/running.json` (the record), `<name>/server.log`, `<name>/data`, `<name>/lock`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .cache import cache_dir
from .model import Command, Origin
from .process import Identity

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One broker as it was last started. `who` is its first process (`None` in a container, and after `down`)."""

    name: str
    origin: Origin
    url: str
    version: str | None
    ports: dict[str, int]
    who: Identity | None = None
    command: Command | None = None
    container: str | None = None
    format: int = field(default=FORMAT)


def default_state() -> Path:
    """The brokers that `atleastonce brokers up` keeps running: `run` in the cache directory."""
    return cache_dir() / "run"


def write(directory: Path, record: Record) -> None:
    """Replace the record of the broker in `directory`; a reader sees the old one or the new one."""
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / "running.json.new"
    draft.write_text(json.dumps(asdict(record), indent=1))
    draft.replace(directory / "running.json")


def read(directory: Path) -> Record | None:
    """The record of the broker in `directory`; `None` when there is none, or none that this version understands."""
    try:
        raw = json.loads((directory / "running.json").read_text())
        if raw.pop("format") != FORMAT:
            return None
        who, command = raw.pop("who"), raw.pop("command")
        return Record(**raw, who=Identity(**who) if who else None, command=Command(**command) if command else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
