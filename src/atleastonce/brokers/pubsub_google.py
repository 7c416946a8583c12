"""Google's own emulator of Pub/Sub, a second opinion beside the fake of its Go client. Where they differ, one of them is wrong.

Its jar is in no registry, so it is fetched from nowhere: it is used where Google's package is installed. One class of ours
comes before it (`pins/pubsub-google`), compiled by the JDK that the package depends on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from . import ready
from .cache import install_once
from .model import HOST, Command, Place, Recipe, Unavailable
from .progress import Progress
from .tools import PINS, run

NAME = "pubsub-google"
PORTS = {"main": 8086}
FLAGS = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_SHIM = 1
"""Of the class, in the cache's name: another number, another build."""


def _folders() -> Iterator[Path]:
    """Where Google's packages put it."""
    if gcloud := shutil.which("gcloud"):
        yield Path(gcloud).resolve().parent.parent
    yield Path("/usr/lib/google-cloud-sdk")
    yield Path.home() / "google-cloud-sdk"


def jar() -> Path:
    """The emulator, the newest one of the first place that has any. Raises `Unavailable`."""
    for folder in _folders():
        if found := sorted(folder.glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar")):
            return found[-1]
    raise Unavailable(
        NAME, "Google's emulator is not installed: gcloud components install pubsub-emulator, or its Debian package"
    )


def version_of(file: Path) -> str:
    """``0.8.20`` of ``cloud-pubsub-emulator-0.8.20-all.jar``."""
    return file.name.removeprefix("cloud-pubsub-emulator-").removesuffix("-all.jar")


def install(progress: Progress) -> Path:
    """Our class in the cache. Raises `Unavailable`."""
    del progress  # it takes a second
    emulator = jar()
    for tool in ("java", "javac"):
        if shutil.which(tool) is None:
            raise Unavailable(NAME, f"there is no {tool}: Google's emulator needs a JDK, 8 or newer")

    def build(folder: Path) -> None:
        source = str(PINS / NAME / "InternalStatus.java")
        run(NAME, "javac", ["javac", "-nowarn", "-cp", str(emulator), "-d", str(folder / "shim"), source])

    return install_once(f"{NAME}-{version_of(emulator)}-{_SHIM}", build)


def prepare(install: Path, place: Place) -> Command:
    """Everything is on the command line; messages live in memory."""
    path = os.pathsep.join([str(install / "shim"), str(jar())])
    main = ["com.google.cloud.pubsub.testing.v1.Main", f"--host={HOST}", f"--port={place.port}"]
    env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(place.directory)}
    return Command([shutil.which("java") or "java", *FLAGS, "-cp", path, *main], env, str(place.directory))


RECIPE = Recipe(
    name=NAME,
    ports=PORTS,
    image=None,  # the one of `pubsub` has this emulator, without our class
    # It refuses more, as Pub/Sub did until 2024; and a pull that waits is not told that its subscription was deleted.
    url=lambda port: f"pubsub://{HOST}:{port}?dead_letter_retention=7d&pull_timeout=5s",
    install=install,
    prepare=prepare,
    probe=ready.pubsub,
    version=lambda _place: version_of(jar()),
)
