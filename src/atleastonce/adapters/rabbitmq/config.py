"""Settings: what the URL and the options say, checked, and pika's parameters made of them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pika

from atleastonce import durations
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, ensure_files, given_options

_TLS_SCHEMES = frozenset({"amqps", "rabbitmqs"})
_SECONDS = {
    "heartbeat": 1.0,
    "connect_timeout": 0.1,
    "operation_timeout": 0.1,
    "send_timeout": 0.1,
    "blocked_connection_timeout": 1.0,
}
_COUNTS = {"delivery_limit": 1, "publish_window": 1}
_SIZES = ("max_message_bytes", "publish_window_bytes")
_TEXTS = ("management", "connection_name", "cafile", "certfile", "keyfile", "server_hostname")
_OBJECTS = ("ssl_context", "credentials", "client_properties", "tcp_options")
_KNOWN = (*_SECONDS, *_COUNTS, *_SIZES, *_TEXTS, *_OBJECTS)
_FRAME_MAX = 131_072
_NUMBER = re.compile(r"\d+(\.\d+)?")  # in a URL, seconds as a number are text


@dataclass(frozen=True)
class Config:
    """Everything that an adapter was told.

    Attributes:
        hosts: tried in turn.
        virtual_host: ``/`` where the URL names none.
        heartbeat: seconds. A peer that is gone without a word is noticed after one to two of these and 5 s. Shorter: a busy
            event loop looks dead to the broker.
        connect_timeout: seconds for TCP and TLS to each host.
        operation_timeout: seconds for the answer to one declaration, and for the goodbye.
        send_timeout: seconds after which a publish without a confirm ends as unknown.
        blocked_connection_timeout: seconds after which a connection blocked by an alarm of the broker is given up and
            made anew, so that it may reach another node.
        publish_window: publishes without a confirm at one time. Fewer show the network's round trip; more only queue up in the
            broker, and more are unknown after a lost connection.
        publish_window_bytes: the same in bytes of bodies; one message is always let through.
        max_message_bytes: body, key and headers; of retries and dead letters the body alone. RabbitMQ's ``max_message_size``, of
            bodies, is 16 MiB since 4.0, and going over it closes the channel under all other publishes: never set this above
            the broker's.
        delivery_limit: hand-outs of one message after which the broker itself moves it to the dead-letter queue: the net
            beneath retries, for messages that kill their consumer. Too small: on brokers before 4.3 every give-back counts,
            restarts too; too large: as many crashes.
        management: address of the management API, for what AMQP does not tell (messages in flight).
    """

    hosts: tuple[tuple[str, int], ...]
    virtual_host: str = "/"
    credentials: Any = field(default=None, repr=False)
    tls: Any = field(default=None, repr=False)
    server_hostname: str | None = None
    heartbeat: float = 15.0
    connect_timeout: float = 10.0
    operation_timeout: float = 15.0
    send_timeout: float = 30.0
    blocked_connection_timeout: float = 300.0
    publish_window: int = 1000
    publish_window_bytes: int = 32 * 2**20
    max_message_bytes: int = 16 * 2**20
    delivery_limit: int = 20
    management: str | None = None
    connection_name: str = "atleastonce"
    client_properties: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tcp_options: Mapping[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, url: BrokerUrl, options: Mapping[str, Any]) -> Config:
        """Check and combine; an option given in code wins over the URL.

        Raises:
            ConfigurationError: an option that does not exist or has a bad value.
        """
        given = given_options("rabbitmq", url, options, known=_KNOWN, objects=_OBJECTS)
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name in _SECONDS:
                number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
                values[name] = durations.seconds(number, name=name, minimum=_SECONDS[name])
            elif name in _COUNTS:
                values[name] = _count(name, value, _COUNTS[name])
            elif name in _SIZES:
                values[name] = durations.size_in_bytes(value, name=name)
            elif name in ("management", "connection_name", "server_hostname", "client_properties", "tcp_options"):
                values[name] = value
        secure = url.scheme in _TLS_SCHEMES
        port = 5671 if secure else 5672
        return cls(
            hosts=tuple((host, own or port) for host, own in url.hosts or (("localhost", None),)),
            virtual_host=url.path or "/",
            credentials=given.get("credentials")
            or pika.PlainCredentials(url.user or "guest", url.password if url.password is not None else "guest"),
            tls=_tls(given, secure),
            **values,
        )

    def parameters(self, purpose: str) -> list[Any]:
        """pika's, one for each host. ``purpose`` shows in the broker's list of connections."""
        options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
        # Without it data for a peer that is gone is repeated for 15 minutes before anybody is told.
        options["TCP_USER_TIMEOUT"] = int((2 * self.heartbeat + 5) * 1000)
        return [
            pika.ConnectionParameters(
                host=host,
                port=port,
                virtual_host=self.virtual_host,
                credentials=self.credentials,
                frame_max=_FRAME_MAX,
                heartbeat=max(1, round(self.heartbeat)),
                ssl_options=None if self.tls is None else pika.SSLOptions(self.tls, self.server_hostname or host),
                connection_attempts=1,
                retry_delay=0,
                socket_timeout=self.connect_timeout,
                stack_timeout=1.5 * self.connect_timeout,
                blocked_connection_timeout=self.blocked_connection_timeout,
                client_properties={**self.client_properties, "connection_name": f"{self.connection_name} ({purpose})"},
                tcp_options={**options, **self.tcp_options},
            )
            for host, port in self.hosts
        ]

    @property
    def user(self) -> str:
        """As whom we log in; "" where a certificate says it."""
        return str(getattr(self.credentials, "username", ""))

    @property
    def address(self) -> str:
        """For messages to people: ``host:port, host:port``."""
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.isdigit())):
        raise ConfigurationError(f"rabbitmq: {name}={value!r} is no whole number")
    if int(value) < least:
        raise ConfigurationError(f"rabbitmq: {name}={value} is out of range; it must be at least {least}")
    return int(value)


def _tls(given: Mapping[str, Any], secure: bool) -> ssl.SSLContext | None:
    files = [name for name in ("cafile", "certfile", "keyfile", "server_hostname", "ssl_context") if given.get(name)]
    if not secure:
        if files:
            raise ConfigurationError(f'rabbitmq: option "{files[0]}" needs TLS; write amqps:// or rabbitmqs://')
        return None
    context = given.get("ssl_context")
    if context is not None:
        if not isinstance(context, ssl.SSLContext):
            raise ConfigurationError(f"rabbitmq: ssl_context is a {type(context).__name__}, not an ssl.SSLContext")
        return context
    ensure_files("rabbitmq", given, "cafile", "certfile", "keyfile")
    try:
        context = ssl.create_default_context(cafile=given.get("cafile"))
        if given.get("certfile"):
            context.load_cert_chain(given["certfile"], given.get("keyfile"))
    except OSError as error:
        raise ConfigurationError(f"rabbitmq: TLS files: {error.strerror or error}") from None
    return context
