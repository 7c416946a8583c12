"""What the rest of this package talks about: where a broker came from, what a recipe must say, what can go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .progress import Progress

Origin = Literal["environment", "container", "native"]

HOST = "127.0.0.1"
"""Everything that is started here listens on this address and on no other."""


class Unavailable(Exception):
    """A broker that cannot be had, with the reason in one line.

    `name` is the broker, `reason` says what is missing or what failed and what to change.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[Unavailable], tuple[str, str]]:
        return type(self), (self.name, self.reason)


class StartFailed(Unavailable):
    """The broker was there and did not come up. The reason ends with the last lines of its log."""


class RequiredBrokersMissing(Exception):
    """Brokers named in `ALO_REQUIRE` could not be had. `missing` has one `Unavailable` for each."""

    def __init__(self, missing: list[Unavailable]) -> None:
        super().__init__("; ".join(f"required {each}" for each in missing))
        self.missing = missing


class NotReady(Exception):
    """The protocol call that tells whether a broker serves was not answered as it should be (yet)."""


@dataclass(frozen=True)
class Command:
    """A server process: what to run, and how to ask it to end.

    `env` is the whole environment of the process: nothing is inherited, so that a recorded command holds no secret
    of the user's shell. `stop_signal` asks for an orderly end within `grace` seconds; afterwards comes SIGKILL. Too
    small a grace loses what the broker flushes at its end; too large a one only delays `down` on a broker that hangs.
    """

    argv: list[str]
    env: dict[str, str]
    cwd: str
    stop_signal: int = 15
    grace: float = 10.0


@dataclass(frozen=True)
class Place:
    """Where one broker lives: a directory of its own, and its ports by purpose (`main` is the one in the URL)."""

    directory: Path
    ports: Mapping[str, int]

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def port(self) -> int:
        return self.ports["main"]


@dataclass(frozen=True)
class Image:
    """How to run a broker from a container image: `ports` maps the purposes of `Recipe.ports` to the ports inside, where
    0 is the same number as outside."""

    default: str
    ports: Mapping[str, int]
    env: Callable[[Place], Mapping[str, str]] = field(default=lambda _place: {})
    command: Callable[[Place], list[str]] = field(default=lambda _place: [])


@dataclass(frozen=True)
class Recipe:
    """One broker: how it is fetched, started, asked whether it serves, and addressed.

    - `install` fetches it into the cache and returns the directory; raises `Unavailable`.
    - `prepare` writes configuration and, once per data directory, formats the data; returns the command to run.
    - `probe(host, port, url)` makes one real protocol call and returns the version the broker names, or `None` where
      the protocol has no place for it; raises `NotReady` or `OSError`. `version` reads it from elsewhere then.
    - `image` is `None` for what makes no sense in a container.
    - `ready`, where given, is asked after `probe` succeeds on a broker that was started here: for what opens later
      than the main port.
    """

    name: str
    ports: Mapping[str, int]
    image: Image | None
    url: Callable[[int], str]
    install: Callable[[Progress], Path]
    prepare: Callable[[Path, Place], Command]
    probe: Callable[[str, int, str], str | None]
    version: Callable[[Place], str | None] = field(default=lambda _place: None)
    ready: Callable[[Place], None] = field(default=lambda _place: None)
    addresses: Callable[[Place], dict[str, str]] = field(default=lambda _place: {})
    start_within: float = 60.0
