"""NATS with JetStream on disk. `ALO_NATS_VERSION` chooses an older server: `2.10` or `2.12`."""

from __future__ import annotations

import os
from pathlib import Path

from . import ready
from .model import HOST, Command, Image, Place, Recipe, Unavailable
from .progress import Progress
from .python_packages import environment

VERSION = "2.15.1"
VARIABLE = "ALO_NATS_VERSION"
_VERSIONS = {"2.10": "2.10.26", "2.12": "2.12.8", "2.15": VERSION}
PORTS = {"main": 4222, "monitoring": 8222}

# Within these bounds JetStream takes streams; without them it sizes itself by the whole machine. What it stores
# survives `kill -9` of the server; a crash of the machine may lose what was not synced in the last two minutes.
SETTINGS = """\
server_name: atleastonce
host: {host}
port: {main}
http: "{host}:{monitoring}"
jetstream {{
  store_dir: "{data}"
  max_memory_store: 256MB
  max_file_store: 8GB
}}
"""


def install(progress: Progress) -> Path:
    """The server in the cache. Raises `Unavailable`."""
    wanted = os.environ.get(VARIABLE) or "2.15"
    if wanted not in _VERSIONS:
        raise Unavailable("nats", f"{VARIABLE} is {wanted!r}: expected {', '.join(_VERSIONS)}")
    version = _VERSIONS[wanted]
    pins = "nats" if version == VERSION else f"nats-{wanted}"
    return environment("nats", pins, progress, megabytes=20, text=f"fetching nats-server {version}", version=version)


def prepare(install: Path, place: Place) -> Command:
    """Write the settings; the server makes its store itself."""
    config = place.directory / "nats.conf"
    config.write_text(SETTINGS.format(host=HOST, data=place.data, **place.ports))
    return Command([str(install / "bin" / "nats-server"), "-c", str(config)], {}, str(place.directory))


RECIPE = Recipe(
    name="nats",
    ports=PORTS,
    image=Image("nats:2.12.8-alpine", PORTS, command=lambda _place: ["-js", "-m", "8222"]),
    url=lambda port: f"nats://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=ready.nats,
    addresses=lambda place: {"monitoring": f"http://{HOST}:{place.ports['monitoring']}"},
)
