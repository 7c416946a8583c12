"""Broker addresses: ``scheme://user:password@host:port,host:port/path?option=value``, with the secrets kept out of
sight."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from atleastonce.errors import ConfigurationError

_SECRET = re.compile(r"pass|pwd|secret|token|key|cred|jaas|pem|sasl\.oauthbearer\.config", re.IGNORECASE)
# Up to the last "@" before a space: a password may hold "@", "/" or "?" as it was typed, and showing less is safe.
# Bounded, as are the others: what they look through may be an error's text that somebody made up to be slow.
_USERINFO = re.compile(r"(?<=://)\S{0,16384}@")
_OPTION = re.compile(r"(?<=[?&;])([^=&;?\s]{1,256})=([^&\s]+)")
# What configurations and connection strings look like in the errors of other libraries.
_SETTING = re.compile(
    r"""(?i)((?:password|passwd|pwd|secret|token)[\w.-]{0,64}(?:=|["']\s{0,8}:\s{0,8}))(?![=\s])("[^"]*"?|'[^']*'?|[^\s,;&"')}\]]+)"""
)
_PORT = re.compile(r"[0-9:]{0,6}")  # or what may have been meant as one
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def mask(text: str) -> str:
    """``text`` with the passwords of any URLs and settings in it replaced by ``***``: for logs, errors and reprs."""
    if "@" in text:
        text = _USERINFO.sub(_hidden_user, text)
    if "=" in text:
        text = _OPTION.sub(_hidden_option, text)
    if "=" in text or '"' in text or "'" in text:
        text = _SETTING.sub(r"\1***", text)
    return text


def is_secret(option: str) -> bool:
    """Whether an option's value must not be shown, by its name."""
    return _SECRET.search(option) is not None


def ensure_files(scheme: str, given: Mapping[str, Any], *names: str) -> None:
    """Look whether each file that an option names can be read: clients tell a missing one in their own words, without its name,
    and some take it for a server that is away.

    Raises:
        ConfigurationError: which option, which file, and why not.
    """
    for name in names:
        if path := given.get(name):
            try:
                with Path(path).open("rb"):
                    pass
            except (OSError, TypeError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise ConfigurationError(f'{scheme}: {name} "{path}" cannot be read: {reason}') from None


def given_options(
    scheme: str, url: BrokerUrl, options: Mapping[str, Any], *, known: Collection[str], objects: Collection[str]
) -> dict[str, Any]:
    """The options of ``url`` with ``options`` over them: what is given in code wins.

    Args:
        scheme: for the message.
        known: names of all options.
        objects: of those that no text can stand for.

    Raises:
        ConfigurationError: an option that does not exist, or one of ``objects`` in the URL.
    """
    for name in (*url.query, *options):
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else f"; known: {', '.join(sorted(known))}"
            raise ConfigurationError(f'{scheme}: unknown option "{name}"{hint}')
    for name in objects:
        if name in url.query:
            raise ConfigurationError(f'{scheme}: option "{name}" is given in code, not in a URL')
    return {**url.query, **options}


def _hidden_user(match: re.Match[str]) -> str:
    user, colon, _ = match[0].partition(":")
    # A user without a password may be a token; one with "/", "?" or "@" in it is none.
    return f"{user}:***@" if colon and not re.search(r"[/?#@]", user) else "***@"


def _hidden_option(match: re.Match[str]) -> str:
    return f"{match[1]}=***" if is_secret(unquote(match[1])) else match[0]


def mask_url(url: str) -> str:
    """``url``, the whole of which is one address or was meant as one, without anything that could be a secret in it."""
    text = re.sub(r"[\s\x00-\x1f\x7f]", lambda space: quote(space[0]), url)
    head, scheme, tail = text.partition("://")
    if not scheme:
        head, tail = "", text
    masked = _OPTION.sub(_hidden_option, _USERINFO.sub(_hidden_user, _without_host(f"://{tail}")))
    return (f"{head}{masked}" if scheme else masked[3:]).replace("%20", " ")


def _without_host(text: str) -> str:
    """``text`` without what stands where a port does and is none: a password, where the host was forgotten. It may hold "/", "?"
    and "#", so nothing behind it is shown either."""
    if "@" in text:
        return text
    at = len("://")
    for item in re.split("[/?#]", text[at:], maxsplit=1)[0].split(","):
        if _is_password(item):
            return f"{text[: at + item.index(':')]}:***"
        at += len(item) + 1
    return text


def _is_password(item: str) -> bool:
    """Whether ``item``, which stands where a host does, may be a user and a password."""
    _, colon, port = item.partition(":")
    return bool(colon) and not item.startswith("[") and not _PORT.fullmatch(port)


def _quoted(text: str, special: str) -> str:
    return re.sub(rf"[\x00-\x1f\x7f%{special}]", lambda match: quote(match[0], safe=""), text)


_TYPED = 'write "/", "?", "#" and "@" in a user or password as %2F, %3F, %23 and %40'


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
        if not isinstance(url, str):
            raise ConfigurationError(f"a broker URL is text like kafka://localhost:9092, not a {type(url).__name__}")
        url = url.strip()
        shown = f'broker URL "{mask_url(url)}"'
        if _CONTROL.search(url):
            raise ConfigurationError(f"{shown}: it holds a control character; take it out, or percent-encode it")
        match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?(#.*)?", url)
        if match is None:
            raise ConfigurationError(f"{shown}: write it as scheme://host:port, like kafka://localhost:9092")
        scheme, authority, path, query_text, fragment = (part or "" for part in match.groups())
        if fragment:
            raise ConfigurationError(f'{shown}: it holds a "#"; {_TYPED}, in a path as %23')
        if authority and "@" in path:
            raise ConfigurationError(f'{shown}: an "@" after the host; {_TYPED}')
        userinfo, _, hostlist = authority.rpartition("@")
        user, colon, password = userinfo.partition(":")
        hosts: list[tuple[str, int | None]] = []
        for item in filter(None, hostlist.split(",")):
            host = re.fullmatch(r"(\[[^\[\]\s]+\]|[^:\[\]\s]+)(?::([0-9]{1,5}))?", item)
            if host is None or (host[2] is not None and not 0 < int(host[2]) < 65536):
                wrong = _TYPED if "@" in query_text else f'"{item}" is no host:port'
                if _is_password(item) and "@" not in url:
                    user = item.partition(":")[0]
                    wrong = (
                        f'"{user}:***" is no host:port; a user and a password stand before the host: user:password@host'
                    )
                raise ConfigurationError(f"{shown}: {wrong}")
            hosts.append((host[1].strip("[]"), int(host[2]) if host[2] else None))
        query: dict[str, str] = {}
        for part in filter(None, query_text.split("&")):
            name, _, value = part.partition("=")
            name = unquote(name)
            if "@" in name:
                raise ConfigurationError(f'{shown}: an option with "@" in its name; {_TYPED}')
            if name in query:
                raise ConfigurationError(f'{shown}: option "{name}" is given twice')
            query[name] = unquote(value)
        return cls(
            scheme=scheme.lower(),
            hosts=tuple(hosts),
            user=unquote(user) if userinfo else None,
            password=unquote(password) if colon else None,
            path=unquote(path),
            query=query,
        )

    def host_ports(self, default_port: int) -> list[str]:
        """``host:port`` of each host; localhost where none is named."""
        pairs = self.hosts or (("localhost", None),)
        return [f"[{h}]:{p or default_port}" if ":" in h else f"{h}:{p or default_port}" for h, p in pairs]

    def __str__(self) -> str:
        """The address with every secret masked; a user without a password is one, for some brokers a token."""
        userinfo = ""
        if self.user is not None:
            userinfo = "***@" if self.password is None else f"{_quoted(self.user, '/?#@:')}:***@"
        hosts = ",".join((f"[{h}]" if ":" in h else h) + ("" if p is None else f":{p}") for h, p in self.hosts)
        query = "&".join(
            f"{_quoted(name, '=&#')}={'***' if is_secret(name) else _quoted(value, '&#')}"
            for name, value in self.query.items()
        )
        return f"{self.scheme}://{userinfo}{hosts}/{_quoted(self.path, '?#@')}" + (f"?{query}" if query else "")

    __repr__ = __str__
