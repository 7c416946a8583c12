"""Settings: what the URL and the options say, checked; and what resources are called."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atleastonce import durations
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, given_options

SERVICE = "pubsub.googleapis.com:443"
MIN_DEADLINE, MAX_DEADLINE = 10, 600
"""Seconds: the acknowledgement deadlines that a subscription can have."""

_LOCAL_PROJECT = "atleastonce"
_SECONDS = {
    "lease": 1.0,
    "connect_timeout": 0.1,
    "operation_timeout": 0.1,
    "send_timeout": 0.1,
    "pull_timeout": 1.0,
    "keepalive": 1.0,
    "retention": 600.0,
    "dead_letter_retention": 600.0,
}
_COUNTS = {"pulls": (1, 64), "publishes": (1, 256), "max_delivery_attempts": (0, 100)}
_TEXTS = ("project", "prefix", "tls", "credentials_file")
_OBJECTS = ("credentials", "channel_options")
_KNOWN = (*_SECONDS, *_COUNTS, *_TEXTS, *_OBJECTS)
_NUMBER = re.compile(r"\d+(\.\d+)?")  # in a URL, seconds as a number are text
_PROJECT = re.compile(r"[a-z0-9.:-]{1,100}")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}")
_MAX_RETENTION = 31 * 86_400.0

# No channel's name has a "~": a name that was changed meets no other.
_UNFIT = "a~"


@dataclass(frozen=True)
class Config:
    """Everything that an adapter was told.

    Attributes:
        endpoint: ``host:port``.
        tls: whether with TLS and credentials; emulators speak neither.
        project: in which all topics and subscriptions are.
        prefix: of every topic and subscription, to keep test runs and environments of one project apart.
        lease: seconds that a delivery stays with its reader, renewed as long as its handler runs; 10 to 600 (down to 1 where the
            subscription's own deadline is longer: at the cost of a request for each pull). Too short repeats messages whose
            renewal comes late; too long makes a crashed reader's messages wait.
        retention: seconds that a subscription keeps what nobody acknowledged; 10 minutes to 31 days.
        dead_letter_retention: the same for dead letters.
        max_delivery_attempts: hand-outs after which Pub/Sub itself moves a message to the dead-letter topic: the net beneath
            retries. 5 to 100, or 0 for no net: Pub/Sub then does not count deliveries, and retries go through channels.
        connect_timeout: seconds until a broker that does not answer is called unavailable.
        operation_timeout: seconds for one question, declaration, acknowledgement or extension.
        send_timeout: seconds after which a publish without an answer ends as unknown; the time for a reconnect is in it.
        pull_timeout: seconds that one pull waits for a first message. Shorter costs requests; it is no limit on waiting.
        keepalive: seconds of silence after which the connection is probed; a black hole is noticed 10 s later. Below 30 the
            service may hang up.
        pulls: requests for messages at one time, in each subscription with much to do. Fewer show the network's round trip.
        publishes: publish requests at one time. More keys of ordered channels wait for each other with fewer.
        redirected: whether ``PUBSUB_EMULATOR_HOST`` leads away from the service that the URL names.
    """

    endpoint: str
    tls: bool
    project: str
    prefix: str = ""
    lease: float = 30.0
    retention: float = 7 * 86_400.0
    dead_letter_retention: float = _MAX_RETENTION
    max_delivery_attempts: int = 100
    connect_timeout: float = 10.0
    operation_timeout: float = 15.0
    send_timeout: float = 30.0
    pull_timeout: float = 60.0
    keepalive: float = 30.0
    pulls: int = 4
    publishes: int = 16
    redirected: bool = False
    credentials: Any = field(default=None, repr=False)
    credentials_file: str | None = field(default=None, repr=False)
    channel_options: Sequence[tuple[str, Any]] = field(default=(), repr=False)

    @classmethod
    def build(cls, url: BrokerUrl, options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
        """Check and combine; an option given in code wins over the URL.

        ``pubsub://project`` is the real service, or what ``PUBSUB_EMULATOR_HOST`` names. A URL with a port, or with a path,
        names its server itself: ``pubsub://127.0.0.1:8085/project``.

        Raises:
            ConfigurationError: an option that does not exist or has a bad value.
        """
        given = given_options("pubsub", url, options, known=_KNOWN, objects=_OBJECTS)
        if url.user is not None:
            raise ConfigurationError("pubsub: a URL takes no user or password; give credentials_file= or credentials")
        endpoint, project, redirected = _place(url, given, os.environ if environ is None else environ)
        tls = _flag(given["tls"]) if "tls" in given else _is_service(endpoint)
        values = {name: _value(name, value) for name, value in given.items() if name not in ("tls", "project")}
        if not tls and (values.get("credentials") or values.get("credentials_file")):
            raise ConfigurationError(f"pubsub: credentials for {endpoint} need TLS; add tls=true")
        if not project:
            raise ConfigurationError("pubsub: no project; write pubsub://PROJECT or set GOOGLE_CLOUD_PROJECT")
        if not _PROJECT.fullmatch(project):
            raise ConfigurationError(f'pubsub: "{project}" is no project id')
        return cls(endpoint=endpoint, tls=tls, project=project, redirected=redirected, **values)

    @property
    def deadline(self) -> int:
        """The acknowledgement deadline of subscriptions that we make, in seconds."""
        return max(MIN_DEADLINE, min(MAX_DEADLINE, round(self.lease)))

    @property
    def address(self) -> str:
        """For messages to people."""
        return f"{self.endpoint}, project {self.project}"

    def topic(self, name: str) -> str:
        """The full name of a channel's topic."""
        return f"projects/{self.project}/topics/{self.resource(name)}"

    def subscription(self, name: str) -> str:
        """The full name of a source's subscription."""
        return f"projects/{self.project}/subscriptions/{self.resource(name)}"

    def resource(self, name: str) -> str:
        """What ``name`` is called in Pub/Sub: 3 to 255 characters, the first a letter, not beginning with "goog"
        (cloud.google.com/pubsub/docs/pubsub-basics#resource_names). What is not fit begins with ``a~``.

        Raises:
            ConfigurationError: too long.
        """
        id = self.prefix + name
        if not id[0].isalpha() or len(id) < 3 or id.lower().startswith("goog"):
            id = _UNFIT + id
        if not _ID.fullmatch(id):
            raise ConfigurationError(f"{name}: Pub/Sub takes names of up to 255 characters; this has {len(id)}")
        return id


def _place(url: BrokerUrl, given: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[str, str, bool]:
    """Endpoint and project, and whether the environment led away from the service."""
    if len(url.hosts) > 1:
        raise ConfigurationError("pubsub: a URL names one server or one project")
    host, port = url.hosts[0] if url.hosts else ("", None)
    own = str(given.get("project") or "")
    if port is None and not url.path and not host.endswith(".googleapis.com"):
        project = own or host or environ.get("GOOGLE_CLOUD_PROJECT", "")
        emulator = environ.get("PUBSUB_EMULATOR_HOST", "").strip()
        return emulator or SERVICE, project or (_LOCAL_PROJECT if emulator else ""), bool(emulator)
    secure = host.endswith(".googleapis.com")
    shown = f"[{host}]" if ":" in host else host
    endpoint = f"{shown}:{port or (443 if secure else 8085)}"
    project = own or url.path or environ.get("GOOGLE_CLOUD_PROJECT", "")
    return endpoint, project or ("" if _is_service(endpoint) else _LOCAL_PROJECT), False


def _is_service(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    return port == "443" or host.endswith(".googleapis.com")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "yes"):
        return True
    if str(value).lower() in ("false", "0", "no"):
        return False
    raise ConfigurationError(f"pubsub: tls={value!r} is neither true nor false")


def _value(name: str, value: Any) -> Any:
    if name in _SECONDS:
        number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
        found = durations.seconds(number, name=name, minimum=_SECONDS[name])
        most = MAX_DEADLINE if name == "lease" else _MAX_RETENTION
        if found > most:
            raise ConfigurationError(f"pubsub: {name}={value!r} is out of range; at most {most:.0f} seconds")
        return found
    if name in _COUNTS:
        low, high = _COUNTS[name]
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        count = durations.whole(number, name=f"pubsub: {name}", low=low, high=high)
        if name == "max_delivery_attempts" and 0 < count < 5:
            raise ConfigurationError(f"pubsub: max_delivery_attempts={count}: Pub/Sub takes 5 to 100, or 0 for no net")
        return count
    if name == "prefix" and value and not re.fullmatch(r"[A-Za-z][A-Za-z0-9._~+%-]{0,99}", str(value)):
        raise ConfigurationError(f'pubsub: prefix "{value}" must begin with a letter, of letters, digits and -._~+%')
    if name == "credentials_file" and not Path(str(value)).is_file():
        raise ConfigurationError(f'pubsub: credentials_file "{value}" is no file')
    return value
