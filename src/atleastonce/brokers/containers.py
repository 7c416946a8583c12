"""Brokers in containers, through testcontainers, where a Docker engine of this machine answers.

Ports are published on the loopback address, on numbers chosen before: a restarted container is found where it was.
The reaper of testcontainers is not used: what `up` starts must outlive the process that asked for it. Instead, each
container bears a label with the directory it belongs to, by which leftovers are found.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .model import HOST, Image, Place, Unavailable

LABEL = "atleastonce.broker"
SOCKETS = ("/var/run/docker.sock", "~/.docker/run/docker.sock", "~/.docker/desktop/docker.sock")


def why_not() -> str | None:
    """Why no container can be had; `None` when an engine answers."""
    given = os.environ.get("DOCKER_HOST", "")
    if given and not given.startswith("unix://"):
        return f"DOCKER_HOST is {given}: only an engine of this machine publishes ports on its loopback address"
    if not given and not any(Path(socket).expanduser().exists() for socket in SOCKETS):
        return "there is no Docker engine"
    if importlib.util.find_spec("testcontainers") is None:
        return 'testcontainers is missing: pip install "atleastonce[containers]"'
    try:
        with _client() as client:
            client.ping()
    except Exception as error:  # noqa: BLE001  # docker raises its own, requests' and urllib3's; all mean no engine
        return f"the Docker engine does not answer: {error}"
    return None


def image_name(recipe_name: str, image: Image) -> str:
    """`$ALO_IMAGE_KAFKA` for Kafka, else the default of the recipe."""
    return os.environ.get(f"ALO_IMAGE_{recipe_name.upper()}") or image.default


def create(name: str, image: Image, place: Place) -> str:
    """Pull and start the image, and return the container's id. Raises `Unavailable`."""
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    testcontainers_config.ryuk_disabled = True
    reference = image_name(name, image)
    container = DockerContainer(reference).with_envs(**image.env(place))
    if command := image.command(place):
        container.with_command(command)
    for purpose, inside in image.ports.items():
        container.ports[f"{inside or place.ports[purpose]}/tcp"] = (HOST, place.ports[purpose])  # type: ignore[assignment]  # docker takes both
    container.with_kwargs(labels={LABEL: str(place.directory)})
    try:
        container.start()
    except Exception as error:  # see why_not
        remove_left(place.directory)
        raise Unavailable(name, f"no container from {reference}: {error}") from error
    return str(container.get_wrapped_container().id)


def remove_left(directory: Path) -> bool:
    """Remove containers that bear the label of this directory; whether there were any."""
    if why_not():
        return False
    with _client() as client:
        left = client.containers.list(all=True, filters={"label": f"{LABEL}={directory}"})
        for each in left:
            each.remove(force=True, v=True)
        return bool(left)


def is_running(container: str) -> bool:
    """Whether it exists and runs (paused counts)."""
    if why_not():
        return False
    with _client() as client, contextlib.suppress(Exception):
        return client.containers.get(container).status in ("running", "paused")
    return False


def call(container: str, action: str) -> None:
    """`stop`, `kill`, `start`, `pause` or `unpause` it."""
    with _client() as client:
        getattr(client.containers.get(container), action)()


def tail(container: str) -> str:
    """The end of its log, as part of an error."""
    with _client() as client, contextlib.suppress(Exception):
        lines: bytes = client.containers.get(container).logs(tail=15)
        return "; the end of its log:\n  " + lines.decode(errors="replace")
    return ""


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    import docker  # type: ignore[import-untyped]

    options: dict[str, Any] = {"timeout": 30}
    if not os.environ.get("DOCKER_HOST"):
        found = [path for path in (Path(each).expanduser() for each in SOCKETS) if path.exists()]
        if found:
            options["base_url"] = f"unix://{found[0]}"
        client = docker.DockerClient(**options)
    else:
        client = docker.from_env(**options)
    try:
        yield client
    finally:
        client.close()
