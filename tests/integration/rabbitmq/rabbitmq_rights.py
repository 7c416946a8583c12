"""Users with exactly the rights that a test gives them, in a virtual host of the tests' own, and the documented ones."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from atleastonce.brokers import Running

PAGE = Path(__file__).parents[3] / "docs" / "brokers" / "rabbitmq.md"
_LINE = re.compile(r"^rabbitmqctl set_permissions -p / app '(.*)' '(.*)' '(.*)'$", re.M)


class Rights(NamedTuple):
    """Names, or patterns, that a user may configure, write and read."""

    configure: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()

    def without(self, right: str, name: str) -> Rights:
        kept = getattr(self, right) - {name}
        assert kept != getattr(self, right)
        return self._replace(**{right: kept})


def rights(configure: Iterable[str] = (), write: Iterable[str] = (), read: Iterable[str] = ()) -> Rights:
    return Rights(frozenset(configure), frozenset(write), frozenset(read))


def documented(channel: str) -> tuple[str, str, str]:
    """The three patterns of the page's line, with ``channel`` in the place of its example."""
    ((configure, write, read),) = _LINE.findall(PAGE.read_text())
    return tuple(each.replace("orders", re.escape(channel)) for each in (configure, write, read))  # type: ignore[return-value]


class Host:
    """A virtual host of ``broker``, by its management API."""

    def __init__(self, broker: Running) -> None:
        self._api = broker.addresses["management"]
        self._parts = urlsplit(broker.url)
        self.name = f"rights-{uuid.uuid4().hex[:8]}"
        self._users: list[str] = []
        self.ask("PUT", f"vhosts/{self.name}")
        owner = self._parts.username or "guest"
        self._allow(owner, (".*", ".*", ".*"))
        self.owner = self._url(owner, self._parts.password or "guest")

    def user(self, allowed: Rights | tuple[str, str, str], tags: str = "") -> str:
        """The URL of a new user who has these rights and no others."""
        user = f"user-{uuid.uuid4().hex[:8]}"
        self.ask("PUT", f"users/{user}", {"password": "pw", "tags": tags})
        self._users.append(user)
        self.allow(user, allowed)
        return self._url(user, "pw")

    def allow(self, user: str, allowed: Rights | tuple[str, str, str]) -> None:
        """``user``, or who is in its URL, has these rights from now on."""
        if isinstance(allowed, Rights):
            allowed = tuple(f"^({'|'.join(map(re.escape, sorted(each)))})$" if each else "^$" for each in allowed)  # type: ignore[assignment]
        self._allow(urlsplit(user).username or user, allowed)

    def hang_up(self, user: str) -> int:
        """End the connections of who is in the URL ``user``; how many there were."""
        found = [each for each in self.ask("GET", "connections") if each.get("user") == urlsplit(user).username]
        for each in found:
            self.ask("DELETE", f"connections/{quote(each['name'], safe='')}")
        return len(found)

    def close(self) -> None:
        for user in self._users:
            self.ask("DELETE", f"users/{user}")
        self.ask("DELETE", f"vhosts/{self.name}")

    def _allow(self, user: str, patterns: Any) -> None:
        self.ask(
            "PUT", f"permissions/{self.name}/{user}", dict(zip(("configure", "write", "read"), patterns, strict=True))
        )

    def _url(self, user: str, password: str) -> str:
        return f"rabbitmq://{user}:{password}@{self._parts.hostname}:{self._parts.port}/{self.name}"

    def ask(self, method: str, path: str, body: object = None) -> Any:
        login = f"{self._parts.username or 'guest'}:{self._parts.password or 'guest'}"
        headers = {
            "Authorization": "Basic " + base64.b64encode(login.encode()).decode(),
            "Content-Type": "application/json",
        }
        data = json.dumps(body or {}).encode() if method == "PUT" else None
        request = urllib.request.Request(f"{self._api}/api/{path}", method=method, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None
