"""toxiproxy: a fault proxy between client and broker, controlled over HTTP. Its proxies are lost when it restarts."""

from __future__ import annotations

import json
from pathlib import Path

from . import golang, ready
from .model import HOST, Command, Place, Recipe
from .progress import Progress

VERSION = "2.12.0"
PORTS = {"main": 8474}
PACKAGE = "github.com/Shopify/toxiproxy/v2"


def install(progress: Progress) -> Path:
    """The server built into the cache. Raises `Unavailable`."""
    named = f"-X {PACKAGE}.Version={VERSION}"
    return golang.build("toxiproxy", "toxiproxy", f"{PACKAGE}/cmd/server", VERSION, progress, named)


def prepare(install: Path, place: Place) -> Command:
    """Two flags."""
    argv = [str(install / "server"), "-host", HOST, "-port", str(place.port)]
    return Command(argv, {}, str(place.directory))


def probe(host: str, port: int, url: str) -> str | None:
    """`GET /version`, which answers in JSON since 2.5 and in plain text before."""
    del url
    answer = ready.http(f"http://{host}:{port}/version").decode(errors="replace").strip()
    try:
        return str(json.loads(answer)["version"])
    except (ValueError, KeyError, TypeError):
        return answer or None


RECIPE = Recipe(
    name="toxiproxy",
    ports=PORTS,
    image=None,  # its proxies listen on ports of this machine; a container cannot publish them later
    url=lambda port: f"http://{HOST}:{port}",
    install=install,
    prepare=prepare,
    probe=probe,
)
