"""Settings: what the URL and the options say, checked, and the client's arguments made of them."""

from __future__ import annotations

import importlib.util
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atleastonce import durations
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, ensure_files, given_options, mask

_TLS_SCHEMES = frozenset({"tls", "natss"})
_SECONDS = {
    "ack_wait": 0.1,
    "connect_timeout": 0.1,
    "request_timeout": 0.1,
    "send_timeout": 0.1,
    "ping_interval": 0.1,
    "pull_expires": 1.0,
    "duplicate_window": 0.1,
    "topic_max_age": 0.0,
}
_COUNTS = {"publish_window": 1, "replicas": 1}
_TEXTS = ("name", "token", "credentials", "nkey_seed", "inbox_prefix", "domain")
_TLS = ("cafile", "certfile", "keyfile", "server_hostname", "ssl_context")
_OBJECTS = ("ssl_context", "client")
_KNOWN = (*_SECONDS, *_COUNTS, *_TEXTS, *_TLS, "acks", "client")
_OURS = frozenset(
    {"servers", "allow_reconnect", "max_reconnect_attempts", "reconnect_time_wait", "error_cb", "disconnected_cb"}
    | {"closed_cb", "reconnected_cb", "discovered_server_cb", "lame_duck_mode_cb", "reconnect_to_server_handler"}
    | {"connect_timeout", "ping_interval", "tls", "tls_hostname", "user", "password", "inbox_prefix", "verbose"}
)
_NUMBER = re.compile(r"\d+(\.\d+)?")  # in a URL, seconds as a number are text


@dataclass(frozen=True)
class Config:
    """Everything that an adapter was told.

    Attributes:
        servers: ``nats://host:port`` or ``tls://host:port``, tried in turn.
        ack_wait: seconds of the lease of consumers that we make. Shorter: late renewals repeat messages. Longer: a crashed
            reader's messages wait.
        acks: ``"confirmed"``: a settlement is answered by the consumer itself (double ack). ``"flushed"``: by the server that
            we are connected to, which in a cluster is not the one that stores it; cheaper.
        connect_timeout: seconds for TCP, TLS and the greeting, for each server.
        request_timeout: seconds for the answer to a declaration, a question or a settlement.
        send_timeout: seconds after which a publish without a confirm ends as unknown.
        ping_interval: seconds. A peer that is gone without a word is noticed after three of these. Shorter: a busy event loop
            looks like a dead peer.
        pull_expires: seconds that one request for messages waits on the server. Shorter costs requests while idle.
        publish_window: publishes without a confirm at one time. Fewer show the network's round trip; more only queue up in the
            server, and more are unknown after a lost connection.
        duplicate_window: seconds in which streams that we make drop a repeated id. Longer costs the server memory per message.
        topic_max_age: seconds that topics which we make keep messages, read or not; 0 for ever.
        replicas: copies of streams that we make, 1, 3 or 5.
        domain: the JetStream domain to talk to.
        client: further arguments of ``nats.connect``: ``user_jwt_cb``, ``tls_handshake_first``, ``no_echo`` ...
    """

    servers: tuple[str, ...]
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: str | None = field(default=None, repr=False)
    nkey_seed: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    server_hostname: str | None = None
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    ack_wait: float = 30.0
    acks: str = "confirmed"
    connect_timeout: float = 5.0
    request_timeout: float = 5.0
    send_timeout: float = 30.0
    ping_interval: float = 5.0
    pull_expires: float = 30.0
    publish_window: int = 4000
    duplicate_window: float = 120.0
    topic_max_age: float = 7 * 86_400.0
    replicas: int = 1
    name: str = "atleastonce"
    inbox_prefix: str = "_INBOX"
    domain: str | None = None

    @classmethod
    def build(cls, url: BrokerUrl, options: Mapping[str, Any]) -> Config:
        """Check and combine; an option given in code wins over the URL.

        Raises:
            ConfigurationError: an option that does not exist or has a bad value.
        """
        given = given_options("nats", url, options, known=_KNOWN, objects=_OBJECTS)
        if url.path:
            raise ConfigurationError(f'broker URL "{url}": NATS has no databases; leave "/{url.path}" away')
        values = _checked(given)
        secure = url.scheme in _TLS_SCHEMES
        user, password, token = url.user, url.password, values.pop("token", None)
        if user is not None and password is None:  # as everywhere in NATS: a user without a password is a token
            user, token = None, token or user
        return cls(
            servers=tuple(f"{'tls' if secure else 'nats'}://{each}" for each in url.host_ports(4222)),
            user=user,
            password=password,
            token=token,
            tls=_tls(given, secure),
            **values,
        )

    def arguments(self) -> dict[str, Any]:
        """Of ``nats.connect``, but for the server: one connection has one life, and who needs another makes it."""
        found: dict[str, Any] = {
            "allow_reconnect": False,
            "connect_timeout": self.connect_timeout,
            "ping_interval": self.ping_interval,
            "max_outstanding_pings": 2,
            "name": self.name,
            "inbox_prefix": self.inbox_prefix,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.credentials,
            "nkeys_seed": self.nkey_seed,
            "tls": self.tls,
            "tls_hostname": self.server_hostname,
        }
        return {**{name: value for name, value in found.items() if value is not None}, **self.client}

    @property
    def address(self) -> str:
        """For messages to people."""
        return ", ".join(server.partition("://")[2] for server in self.servers)

    @property
    def api(self) -> str:
        """What JetStream's own subjects begin with."""
        return f"$JS.{self.domain}.API" if self.domain else "$JS.API"


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in _SECONDS:
            number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
            values[name] = durations.seconds(number, name=f"nats {name}", minimum=_SECONDS[name])
        elif name in _COUNTS:
            values[name] = _count(name, value, _COUNTS[name])
        elif name in (*_TEXTS, "server_hostname"):
            if not isinstance(value, str) or not value:
                raise ConfigurationError(f"nats: {name} is text, not {mask(repr(value))}")
            values[name] = value
            if name in ("credentials", "nkey_seed"):
                _check_keys(name, value)
        elif name == "acks":
            if value not in ("confirmed", "flushed"):
                raise ConfigurationError(f'nats: acks={value!r} is neither "confirmed" nor "flushed"')
            values[name] = value
        elif name == "client":
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"nats: client is a dict of nats.connect's arguments, not {value!r}")
            if taken := sorted(_OURS.intersection(value)):
                raise ConfigurationError(f'nats: client={{"{taken[0]}": ...}} is set by this adapter; see its options')
            values[name] = dict(value)
    if values.get("replicas", 1) not in (1, 2, 3, 4, 5):
        raise ConfigurationError(f"nats: replicas={values['replicas']} is out of range 1 to 5")
    return values


def _check_keys(name: str, path: str) -> None:
    if not Path(path).is_file():
        raise ConfigurationError(f"nats: {name} names no file that can be read")  # its path may be nobody's business
    if importlib.util.find_spec("nkeys") is None:
        raise ConfigurationError(f"nats: {name} needs nkeys; run: pip install nkeys")


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.isdigit())):
        raise ConfigurationError(f"nats: {name}={value!r} is no whole number")
    if int(value) < least:
        raise ConfigurationError(f"nats: {name}={value} is out of range; it must be at least {least}")
    return int(value)


def _tls(given: Mapping[str, Any], secure: bool) -> ssl.SSLContext | None:
    if not secure:
        if files := [name for name in _TLS if given.get(name)]:
            raise ConfigurationError(f'nats: option "{files[0]}" needs TLS; write tls:// or natss://')
        return None
    context = given.get("ssl_context")
    if context is not None:
        if not isinstance(context, ssl.SSLContext):
            raise ConfigurationError(f"nats: ssl_context is a {type(context).__name__}, not an ssl.SSLContext")
        return context
    ensure_files("nats", given, "cafile", "certfile", "keyfile")
    try:
        context = ssl.create_default_context(cafile=given.get("cafile"))
        if given.get("certfile"):
            context.load_cert_chain(given["certfile"], given.get("keyfile"))
    except OSError as error:
        raise ConfigurationError(f"nats: TLS files: {error.strerror or error}") from None
    return context
