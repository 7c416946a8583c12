"""Settings: what the URL and the options say, checked, and redis-py's connections made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection

from atleastonce import durations
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, ensure_files, given_options

_TLS_SCHEMES = frozenset({"rediss", "valkeys"})
_SECONDS = {
    "lease": 0.1,
    "poll": 0.01,
    "connect_timeout": 0.1,
    "operation_timeout": 0.1,
    "send_timeout": 0.1,
    "dedupe": 0.0,
}
_TEXTS = ("body_field", "client_name")
_FILES = {"cafile": "ssl_ca_certs", "certfile": "ssl_certfile", "keyfile": "ssl_keyfile"}
_OBJECTS = ("connection",)
_KNOWN = (*_SECONDS, "max_message_bytes", *_TEXTS, *_FILES, *_OBJECTS)
_OURS = frozenset({"host", "port", "db", "socket_timeout", "socket_connect_timeout", "decode_responses", "protocol"})
_UNSUPPORTED = {
    "sentinel": "Sentinel is not asked who the master is; write the servers that it watches, redis://one,two/",
    "cluster": "a Redis Cluster of several shards is not supported; for a server, or one shard, write redis://host/",
}
_NUMBER = re.compile(r"\d+(\.\d+)?")  # in a URL, seconds as a number are text
_BULK = 512 * 2**20
"""Redis's ``proto-max-bulk-len``: the longest field."""


@dataclass(frozen=True)
class Config:
    """Everything that an adapter was told.

    Attributes:
        hosts: tried in turn, at each connection; of several, one that is a replica is passed over.
        db: the database's number.
        lease: seconds that a delivery stays with its reader; renewed while it is handled. Shorter: a pause of the process or
            of the network repeats messages. Longer: what a killed process held waits as long.
        poll: the longest time that a waiting reader takes to notice what no command of Redis can wake it for: retries that
            became due, messages that a peer gave back, leases that ended. Shorter: more commands while idle (two for each
            poll). Longer: these come later.
        connect_timeout: seconds for TCP, TLS and login together.
        operation_timeout: seconds for the answer to a command.
        send_timeout: seconds after which a publish that found no connection ends as unknown.
        dedupe: seconds for which a repeated message id is not stored again; 0 for never. Costs one small key for each
            message, for as long.
        max_message_bytes: body, key and headers.
        body_field: the field that holds the payload.
        client_name: in ``CLIENT LIST`` and, with the process and a number, in ``XINFO CONSUMERS``.
        connection: further arguments for redis-py's ``Connection``: ``credential_provider``, ``ssl_...``, keepalive.
    """

    hosts: tuple[tuple[str, int], ...]
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    secure: bool = False
    lease: float = 30.0
    poll: float = 0.5
    connect_timeout: float = 5.0
    operation_timeout: float = 10.0
    send_timeout: float = 30.0
    dedupe: float = 0.0
    max_message_bytes: int = 16 * 2**20
    body_field: str = "body"
    client_name: str = "atleastonce"
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, url: BrokerUrl, options: Mapping[str, Any]) -> Config:
        """Check and combine; an option given in code wins over the URL.

        Raises:
            ConfigurationError: an option that does not exist or has a bad value.
        """
        if kind := url.scheme.partition("+")[2]:
            raise ConfigurationError(f"redis: {_UNSUPPORTED[kind]}")
        given = given_options("redis", url, options, known=_KNOWN, objects=_OBJECTS)
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name in _SECONDS:
                number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
                values[name] = durations.seconds(number, name=name, minimum=_SECONDS[name])
            elif name == "max_message_bytes":
                values[name] = durations.size_in_bytes(value, name=name)
            elif name in _TEXTS:
                values[name] = _text(name, value)
        if values.get("max_message_bytes", 0) > _BULK:
            raise ConfigurationError("redis: max_message_bytes is out of range; a field of Redis holds at most 512MiB")
        secure = url.scheme in _TLS_SCHEMES
        return cls(
            hosts=tuple((host, port or 6379) for host, port in url.hosts or (("localhost", None),)),
            db=_database(url),
            user=url.user or None,
            password=url.password,
            secure=secure,
            connection=_connection(given, secure),
            **values,
        )

    def connect(self, host: str, port: int, purpose: str) -> Connection:
        """A connection of redis-py's, not yet open. It speaks RESP2, whose shapes are the same on every server."""
        arguments: dict[str, Any] = {
            "retry": None,  # redis-py would repeat what may have been done: an XADD twice
            "socket_keepalive": True,
            "client_name": f"{self.client_name}-{purpose}",
            **self.connection,
        }
        arguments |= {"host": host, "port": port, "db": self.db, "protocol": 2}
        arguments |= {"socket_timeout": self.connect_timeout, "socket_connect_timeout": self.connect_timeout}
        if "credential_provider" not in arguments:
            arguments |= {"username": self.user, "password": self.password}
        try:
            return SSLConnection(**arguments) if self.secure else Connection(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"redis: options of the connection: {error}") from None

    @property
    def address(self) -> str:
        """For messages to people: ``host:port, host:port``."""
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def _database(url: BrokerUrl) -> int:
    if not url.path:
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", url.path):
        raise ConfigurationError(f'broker URL "{url}": "/{url.path}" is no database; write its number, like /0')
    return int(url.path)


def _text(name: str, value: Any) -> str:
    # Redis refuses spaces and control characters in the names of clients; a field's name is for people, too.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", value) or value.startswith("alo-"):
        raise ConfigurationError(f"redis: {name}={value!r}: use 1 to 100 letters, digits, '.', '_' and '-'")
    return value


def _connection(given: Mapping[str, Any], secure: bool) -> dict[str, Any]:
    files = {_FILES[name]: given[name] for name in _FILES if name in given}
    more = given.get("connection") or {}
    if not isinstance(more, Mapping):
        raise ConfigurationError("redis: connection is a mapping of arguments for redis-py's Connection")
    for name in more:
        if name in _OURS:
            raise ConfigurationError(f'redis: connection argument "{name}" is set by the URL and the other options')
    if not secure and (files or any(str(name).startswith("ssl_") for name in more)):
        raise ConfigurationError("redis: TLS options need TLS; write rediss://")
    ensure_files("redis", given, *_FILES)
    return {**files, **more}
