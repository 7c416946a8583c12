"""Addresses that come from outside: the environment variables, and URLs without their secrets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit, urlunsplit

from .model import Unavailable

DEFAULT_PORTS = {
    "kafka": 9092,
    "rabbitmq": 5672,
    "nats": 4222,
    "redis": 6379,
    "postgres": 5432,
    "mysql": 3306,
    "sqs": 4566,
    "elasticmq": 9324,
    "pubsub": 8085,
    "pubsub-google": 8086,
    "toxiproxy": 8474,
}


def variable(name: str) -> str:
    """`ALO_KAFKA_URL` for `kafka`."""
    return f"ALO_{name.upper().replace('-', '_')}_URL"


def from_environment(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The address given for a broker, or `None`; an empty variable counts as absent."""
    return (os.environ if environ is None else environ).get(variable(name), "").strip() or None


def required(names: Iterable[str], environ: Mapping[str, str] | None = None) -> set[str]:
    """Which of `names` the variable `ALO_REQUIRE` (a comma list, or `all`) makes mandatory.

    Raises `ValueError` for a name that is no broker's: with a misspelt one everything would be skipped in silence.
    """
    given = (os.environ if environ is None else environ).get("ALO_REQUIRE", "").split(",")
    words = {word.strip() for word in given} - {""}
    if unknown := sorted(words - DEFAULT_PORTS.keys() - {"all"}):
        raise ValueError(f"ALO_REQUIRE names {unknown[0]!r}: there are {', '.join(DEFAULT_PORTS)} and all")
    return set(names) if "all" in words else words & set(names)


def endpoint(name: str, url: str) -> tuple[str, int]:
    """Host and port of a URL; of the first server where it lists several. Raises `Unavailable` for anything else."""
    try:
        network = urlsplit(url).netloc.rpartition("@")[2].split(",")[0]
        parts = urlsplit(f"//{network}")
        host, port = parts.hostname, parts.port or DEFAULT_PORTS[name]
    except ValueError:
        host, port = None, 0
    if not host and name == "sqs" and url.startswith("sqs://?"):
        host = "amazonaws.com"  # of AWS no more than the region is said, and that may be left to its client
    if not host:
        raise Unavailable(name, f"{variable(name)} is no address: expected {name}://HOST:PORT, got {masked(url)}")
    return host, port


def masked(url: str) -> str:
    """The URL with its password replaced, for every message, table and log. A name without a password stays, except
    for NATS, where it is a token."""
    parts = urlsplit(url)
    credentials, at, network = parts.netloc.rpartition("@")
    if not at:
        return url
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:***" if colon else "***" if parts.scheme == "nats" else user
    return urlunsplit(parts._replace(netloc=f"{shown}@{network}"))
