"""Pub/Sub: the fake that Google's Go client is tested with. In memory; no retry back-off, stale acks are accepted,
and seeking to a time ends the process. What our program around it puts right is said in ``pins/pstest/main.go``."""

from __future__ import annotations

from pathlib import Path

from . import golang, ready
from .model import HOST, Command, Image, Place, Recipe
from .progress import Progress

VERSION = "2.8.1"
_PROGRAM = 3
"""Of the program around it, in the cache's name: another number, another build."""
PORTS = {"main": 8085}


def install(progress: Progress) -> Path:
    """The server built into the cache. Raises `Unavailable`."""
    return golang.build("pubsub", "pstest", ".", f"{VERSION}-{_PROGRAM}", progress)


def prepare(install: Path, place: Place) -> Command:
    """One flag."""
    argv = [str(install / "server"), "-listen", f"{HOST}:{place.port}"]
    return Command(argv, {}, str(place.directory))


def _version(place: Place) -> str | None:
    """The protocol has no place for it; a native one is the pinned module."""
    return f"pstest {VERSION}" if (place.directory / "server.log").exists() else None


RECIPE = Recipe(
    name="pubsub",
    ports=PORTS,
    image=Image(
        "google/cloud-sdk:500.0.0-emulators",
        PORTS,
        command=lambda _place: ["gcloud", "beta", "emulators", "pubsub", "start", "--host-port=0.0.0.0:8085"],
    ),
    url=lambda port: f"pubsub://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=ready.pubsub,
    version=_version,
)
