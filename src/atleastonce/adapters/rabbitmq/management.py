"""The management API, for what AMQP does not tell. Everything here blocks."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

from atleastonce.adapters.rabbitmq.config import Config

_TIMEOUT = 5.0


def ask_queue(config: Config, queue: str) -> Any:
    """What the API tells of ``queue``.

    Raises:
        OSError, ValueError: it does not answer, refuses, or no address of it was given.
    """
    return _ask(config, f"queues/{quote(config.virtual_host, safe='')}/{quote(queue, safe='')}")


def ask_nodes(config: Config) -> int:
    """How many nodes the cluster has. Raises as `ask_queue`."""
    return len(_ask(config, "nodes"))


def _ask(config: Config, path: str) -> Any:
    base = (config.management or "").rstrip("/")
    if urlsplit(base).scheme not in ("http", "https"):
        raise ValueError("the address is neither http:// nor https://")
    login = f"{config.user}:{getattr(config.credentials, 'password', '')}"
    request = urllib.request.Request(  # noqa: S310  # the scheme was checked
        f"{base}/api/{path}", headers={"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        return json.load(answer)
