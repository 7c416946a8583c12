"""Broker addresses: ``scheme://user:password@host:port,host:port/path?option=value``, with the secrets kept out of
sight."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from atleastonce.errors import ConfigurationError

_SECRET = re.compile(r"pass|secret|token|key|cred|jaas|pem|sasl\.oauthbearer\.config", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)([^/@\s:]*):([^@\s]*)@")
_QUERY_SECRET = re.compile(r"(?i)([?&;][^=&\s]*(?:pass|secret|token|key|cred|jaas|pem)[^=&\s]*=)([^&\s]+)")


def mask(text: str) -> str:
    """``text`` with the passwords of any URLs in it replaced by ``***``: for logs, errors and reprs."""
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def is_secret(option: str) -> bool:
    """Whether an option's value must not be shown, by its name."""
    return _SECRET.search(option) is not None


@dataclass(frozen=True, slots=True, repr=False)
class BrokerUrl:
    """A parsed broker address.

    Attributes:
        scheme: chooses the adapter.
        hosts: ``(host, port)`` pairs; port None for the broker's default.
        user, password: decoded; None where absent.
        path: without its leading slash, decoded: a virtual host, database number or project.
        query: the client's own options, as text.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    user: str | None = None
    password: str | None = None
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> BrokerUrl:
        """Take ``url`` apart.

        Raises:
            ConfigurationError: no scheme, a bad port, or a repeated option; the text never shows a password.
        """
        if "://" not in url:
            raise ConfigurationError(
                f'broker URL "{mask(url)}": write it as scheme://host:port, like kafka://localhost:9092'
            )
        parts = urlsplit(url)
        userinfo, _, hostlist = parts.netloc.rpartition("@")
        user, colon, password = userinfo.partition(":")
        hosts: list[tuple[str, int | None]] = []
        for item in filter(None, hostlist.split(",")):
            match = re.fullmatch(r"(\[[^\]]+\]|[^:]+)(?::(\d{1,5}))?", item)
            if match is None or (match[2] is not None and not 0 < int(match[2]) < 65536):
                raise ConfigurationError(f'broker URL "{mask(url)}": "{mask(item)}" is no host:port')
            hosts.append((match[1].strip("[]"), int(match[2]) if match[2] else None))
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        query = dict(pairs)
        if len(query) != len(pairs):
            raise ConfigurationError(f'broker URL "{mask(url)}": an option is given twice')
        return cls(
            scheme=parts.scheme.lower(),
            hosts=tuple(hosts),
            user=unquote(user) if userinfo else None,
            password=unquote(password) if colon else None,
            path=unquote(parts.path[1:]),
            query=query,
        )

    def host_ports(self, default_port: int) -> list[str]:
        """``host:port`` of each host; localhost where none is named."""
        pairs = self.hosts or (("localhost", None),)
        return [f"[{h}]:{p or default_port}" if ":" in h else f"{h}:{p or default_port}" for h, p in pairs]

    def __str__(self) -> str:
        """The address with every secret masked."""
        userinfo = "" if self.user is None else self.user + (":***" if self.password is not None else "") + "@"
        hosts = ",".join(h if p is None else f"{h}:{p}" for h, p in self.hosts)
        query = "&".join(f"{k}={'***' if is_secret(k) else v}" for k, v in self.query.items())
        return f"{self.scheme}://{userinfo}{hosts}/{self.path}" + (f"?{query}" if query else "")

    __repr__ = __str__
