"""Settings: what the URL and the options say, checked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from atleastonce import durations
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, ensure_files, given_options

_SECONDS: Final = {
    "lease": (1.0, 43_200.0),
    "wait": (1.0, 20.0),
    "connect_timeout": (0.1, None),
    "operation_timeout": (0.1, None),
    "send_timeout": (0.1, None),
    "retention": (60.0, 1_209_600.0),
    "exit_wait": (0.0, 60.0),
}
_COUNTS: Final = {"pollers": (1, 100), "threads": (1, 100), "connections": (3, 10_000), "net": (0, 1000)}
_SIZES: Final = ("max_message_bytes", "topic_max_message_bytes")
_TEXTS: Final = ("region", "prefix", "profile", "account", "sns_endpoint", "session_token", "cafile")
_OBJECTS: Final = ("config", "session")
_KNOWN: Final = (*_SECONDS, *_COUNTS, *_SIZES, *_TEXTS, "tls", *_OBJECTS)

_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+){1,3}-[0-9]{1,2}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_ACCOUNT: Final = re.compile(r"[0-9]{12}")
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")
_EMULATOR_PORT: Final = 4566
# What emulators are content with. They read no more of it than the region.
_EMULATOR_KEY: Final = "test"
_EMULATOR_REGION: Final = "us-east-1"


@dataclass(frozen=True)
class Config:
    """Everything that an adapter was told.

    Attributes:
        endpoint: of an emulator or an interface endpoint; None for AWS's own in the region.
        emulated: the endpoint is on this machine: no credentials of the user are looked for, or sent there.
        region: None: as boto3 finds it (``AWS_REGION``, profile).
        key, secret, session_token: credentials; None: boto3's own chain (environment, profile, role).
        prefix: before the name of every queue and topic.
        account: the 12 digits of the account that topics are in; None: asked for (``sts:GetCallerIdentity``).
        sns_endpoint: where SNS is, if elsewhere than ``endpoint``.
        lease: seconds, whole: the visibility timeout. Too short: messages whose renewal comes late are handled twice. Too
            long: what a crashed consumer held waits for so long.
        wait: seconds that one poll waits for messages, at most 20. Shorter: more requests on idle queues, which cost money.
            Longer: the process may end later.
        exit_wait: seconds that the end of the process waits for polls under way; None: as long as they take. SQS goes on with a
            poll whose connection is closed (aws-sdk-java-v2#1395), and what it takes then is nobody's until its lease is over. Too
            short: such messages come late. Longer than a poll makes no difference.
        pollers: the most polls at once in one subscription. One is kept while nothing comes; more are added while polls come
            back full. Too few show the network's round trip; more than the processor can parse only wait.
        threads: calls at once, beside the polls: publishing, settling, extending.
        connections: of one client, kept open; polls and threads together never have more.
        connect_timeout: seconds for TCP and TLS, and for the first answer.
        operation_timeout: seconds for a declaration's calls, each.
        send_timeout: seconds after which a publish without an answer ends as unknown.
        retention: seconds that queues keep what nobody takes, when they are made; 14 days is the most.
        net: receives after which SQS itself moves a message to the dead-letter queue, 0 for never. Retries and releases count
            too, so it must be above all that a message honestly needs.
        max_message_bytes: body and attributes of one message and of one batch. AWS takes 1 MiB.
        topic_max_message_bytes: the same for SNS, which takes 256 KiB.
    """

    endpoint: str | None = None
    emulated: bool = False
    region: str | None = None
    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    prefix: str = ""
    account: str | None = None
    sns_endpoint: str | None = None
    cafile: str | None = None
    lease: int = 30
    wait: int = 10
    exit_wait: float | None = None
    pollers: int = 8
    threads: int = 8
    connections: int = 128
    connect_timeout: float = 5.0
    operation_timeout: float = 20.0
    send_timeout: float = 30.0
    retention: int = 1_209_600
    net: int = 1000
    max_message_bytes: int = 1_048_576
    topic_max_message_bytes: int = 262_144
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    session: Any = field(default=None, repr=False)

    @classmethod
    def build(cls, url: BrokerUrl, options: Mapping[str, Any]) -> Config:
        """Check and combine; an option given in code wins over the URL.

        Raises:
            ConfigurationError: an option that does not exist or has a bad value.
        """
        given = given_options("sqs", url, options, known=_KNOWN, objects=_OBJECTS)
        ensure_files("sqs", given, "cafile")
        tls = given.pop("tls", None)
        values = {name: _checked(name, value) for name, value in given.items()}
        values |= _credentials(url) | _place(url, values.get("region"), tls)
        if values.get("emulated"):
            values.setdefault("key", _EMULATOR_KEY)
            values.setdefault("secret", _EMULATOR_KEY)
            values["region"] = values.get("region") or _EMULATOR_REGION
        made = cls(**values)
        if made.connections < made.threads + 2:
            raise ConfigurationError(
                f"sqs: connections={made.connections} leaves none for polls beside threads={made.threads}; give more"
            )
        return made

    @property
    def polls(self) -> int:
        """The most polls at once, over all subscriptions."""
        return self.connections - self.threads - 1

    @property
    def at_exit(self) -> float:
        """Seconds that the end of the process waits for polls, at most."""
        return self.wait + 1.0 if self.exit_wait is None else self.exit_wait

    @property
    def address(self) -> str:
        """For messages to people."""
        return f"SQS at {self.endpoint}" if self.endpoint else f"SQS in {self.region or 'the configured region'}"


def _checked(name: str, value: Any) -> Any:
    if name in _SECONDS:
        low, high = _SECONDS[name]
        number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
        seconds = durations.seconds(number, name=f"sqs {name}", minimum=low)
        if high is not None and seconds > high:
            raise ConfigurationError(f"sqs {name}: {value!r} is out of range; it must be at most {high:g} seconds")
        if name not in ("lease", "wait", "retention"):
            return seconds
        if seconds != int(seconds):
            raise ConfigurationError(f"sqs {name}: {value!r} has a fraction; SQS counts in whole seconds")
        return int(seconds)
    if name in _COUNTS:
        low, high = _COUNTS[name]
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        return durations.whole(number, name=f"sqs {name}", low=low, high=high)
    if name in _SIZES:
        size = durations.size_in_bytes(int(value) if isinstance(value, str) and value.isdigit() else value, name=name)
        if size < 16_384:
            raise ConfigurationError(f"sqs: {name}={value!r} is out of range; it must be at least 16KiB")
        return size
    if name == "config":
        if not isinstance(value, Mapping):
            raise ConfigurationError("sqs: config is a dict of botocore.config.Config's arguments")
        return value
    if name in _TEXTS:
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"sqs: {name} is empty, or no text")
        if name == "prefix" and not _PREFIX.fullmatch(value):
            raise ConfigurationError(f'sqs: prefix={value!r}: use up to 40 letters, digits, "-" and "_"')
        if name == "account" and not _ACCOUNT.fullmatch(value):
            raise ConfigurationError(f"sqs: account={value!r} is no account id of 12 digits")
    return value


def _credentials(url: BrokerUrl) -> dict[str, Any]:
    if url.user is None:
        return {}
    if url.password is None:
        raise ConfigurationError(f'broker URL "{url}": an access key id needs its secret: sqs://KEY:SECRET@...')
    return {"key": url.user, "secret": url.password}


def _place(url: BrokerUrl, region: str | None, tls: Any) -> dict[str, Any]:
    """Region and endpoint, from what stands where the host does."""
    if url.path:
        # Not shown: of sqs://KEY:12/SECRET, without its region, the path is a part of the secret.
        raise ConfigurationError(
            'broker URL "sqs://...": SQS has no path; options go behind a "?", and a "/" in a secret is written as %2F'
        )
    if len(url.hosts) > 1:
        raise ConfigurationError(f'broker URL "{url}": one region or endpoint, please')
    secure = _yes_or_no(tls)
    if not url.hosts:
        if secure is not None:
            raise ConfigurationError("sqs: tls= goes with an endpoint; AWS itself is always spoken to through TLS")
        return {"region": region}
    ((host, port),) = url.hosts
    if port is None and _REGION.fullmatch(host):
        if region not in (None, host):
            raise ConfigurationError(f'broker URL "{url}": two regions, {host} and {region}')
        return {"region": host}
    here = _is_here(host)
    secure = secure if secure is not None else not here
    number = port if port is not None else (443 if secure else _EMULATOR_PORT)
    shown = f"[{host}]" if ":" in host else host
    endpoint = f"{'https' if secure else 'http'}://{shown}:{number}"
    return {"endpoint": endpoint, "emulated": here and url.user is None, "region": region}


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _yes_or_no(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if str(value).lower() not in words:
        raise ConfigurationError(f"sqs: tls={value!r} is neither true nor false")
    return words[str(value).lower()]
