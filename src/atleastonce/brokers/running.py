"""A broker that runs: its address, and, where it was started here, the means to end, kill, pause and restart it."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import containers, state
from .addresses import endpoint, masked
from .model import NotReady, Origin, Place, Recipe, StartFailed, Unavailable
from .process import alive, end, family, halt, kill, send, spawn
from .progress import wait_until
from .tools import interrupted


class Running:
    """One broker. Made by `up`, `session` and `status`."""

    def __init__(self, recipe: Recipe, record: state.Record, directory: Path | None) -> None:
        self._recipe = recipe
        self._record = record
        self._directory = directory

    def __repr__(self) -> str:
        return f"<{self.name} {self.version or ''} at {masked(self.url)}, {self.origin}>"

    @property
    def name(self) -> str:
        return self._recipe.name

    @property
    def url(self) -> str:
        """Its address, with credentials."""
        return self._record.url

    @property
    def version(self) -> str | None:
        """What the broker says it is; `None` where it says nothing."""
        return self._record.version

    @property
    def origin(self) -> Origin:
        return self._record.origin

    @property
    def port(self) -> int:
        """The main port."""
        return self._where()[1]

    @property
    def pid(self) -> int | None:
        """Its first process; `None` in a container and for addresses from the environment."""
        return self._record.who.pid if self._record.who else None

    @property
    def pids(self) -> set[int]:
        """All its living processes."""
        return {each.pid for each in family(self._mark(), self._record.who)} if self._directory else set()

    @property
    def addresses(self) -> dict[str, str]:
        """Further addresses: `management` of RabbitMQ, `monitoring` of NATS, `proxied` and `proxy` of Kafka (a fault
        proxy that listens on `proxy` and forwards to `proxied` stays between a client and the broker)."""
        return self._recipe.addresses(self._place()) if self._directory else {}

    @property
    def management_url(self) -> str | None:
        """RabbitMQ's HTTP API, user and password `guest`."""
        return self.addresses.get("management")

    @property
    def log(self) -> Path | None:
        """Its log file; `None` where it was not started natively."""
        return self._directory / "server.log" if self._directory and self.origin == "native" else None

    def report(self) -> dict[str, Any]:
        """The fixed shape of `brokers up --json`."""
        return {"url": self.url, "version": self.version, "from": self.origin}

    def is_alive(self) -> bool:
        """Whether its process exists. Says nothing of whether it serves: see `healthy`."""
        if self._record.container:
            return containers.is_running(self._record.container)
        return self.origin == "environment" or alive(self._record.who)

    def healthy(self) -> bool:
        """Whether it answers one real call of its protocol now."""
        try:
            self._recipe.probe(*self._where(), self.url)
            if self._directory:
                self._recipe.ready(self._place())
        except (OSError, NotReady):
            return False
        return True

    def stop(self) -> None:
        """End it in order, and everything it started; forcibly after its grace time."""
        if self._record.container:
            containers.call(self._record.container, "stop")
        elif self._record.command:
            end(self._mark(), self._record.who, self._record.command.stop_signal, self._record.command.grace)
        else:
            self._foreign("stopped")
        self._remember(replace(self._record, who=None))

    def kill(self) -> None:
        """SIGKILL, as when the machine's memory runs out; returns when it is dead. Its data directory stays."""
        if self._record.container:
            containers.call(self._record.container, "kill")
        elif self._directory:
            kill(self._mark(), self._record.who)
        else:
            self._foreign("killed")
        self._remember(replace(self._record, who=None))

    def start(self) -> None:
        """Start it again after `stop` or `kill`, on the same ports and data, and wait until it serves.

        Raises `StartFailed` with the end of its log.
        """
        if self.is_alive():
            return
        if self._record.container:
            containers.call(self._record.container, "start")
        elif self._record.command and self._directory:
            end(self._mark(), None, grace=0)  # what a killed broker left, such as RabbitMQ's epmd
            self._remember(replace(self._record, who=spawn(self._record.command, self._mark(), self._log())))
        else:
            self._foreign("started")
        self.wait_ready()

    def restart(self) -> None:
        """`stop`, then `start`."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing, as in a long garbage collection."""
        if self._record.container:
            containers.call(self._record.container, "pause")
        elif self._directory:
            halt(family(self._mark(), self._record.who))
        else:
            self._foreign("paused")

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        if self._record.container:
            containers.call(self._record.container, "unpause")
        elif self._directory:
            send(family(self._mark(), self._record.who), signal.SIGCONT)
        else:
            self._foreign("resumed")

    def wait_ready(self) -> None:
        """Wait until it serves. Raises `StartFailed` when its process ends, or after the recipe's time."""
        deadline = time.monotonic() + self._recipe.start_within
        why = "no answer"
        while self.is_alive():
            try:
                version = self._recipe.probe(*self._where(), self.url)
                self._recipe.ready(self._place())
            except (OSError, NotReady) as error:
                why = str(error) or type(error).__name__
            else:
                version = version or self._recipe.version(self._place())
                self._remember(replace(self._record, version=version))
                return
            if interrupted.is_set():
                raise StartFailed(self.name, "the start was interrupted")
            if not wait_until(deadline):
                raise StartFailed(self.name, f"not ready after {self._recipe.start_within:.0f} s ({why}){self._tail()}")
        raise StartFailed(self.name, f"ended during its start{self._tail()}")

    def _where(self) -> tuple[str, int]:
        return endpoint(self.name, self.url)

    def _tail(self) -> str:
        if self.origin == "container":
            return containers.tail(self._record.container or "")
        lines = self._log().read_text(errors="replace").splitlines()[-15:] if self._log().exists() else []
        return f"; the end of {self._log()}:\n  " + "\n  ".join(lines) if lines else ""

    def _log(self) -> Path:
        return self._mark() / "server.log"

    def _mark(self) -> Path:
        if self._directory is None:
            raise Unavailable(self.name, "it was not started here")
        return self._directory

    def _place(self) -> Place:
        return Place(self._directory or Path(), self._record.ports)

    def _remember(self, record: state.Record) -> None:
        self._record = record
        if self._directory:
            state.write(self._directory, record)

    def _foreign(self, verb: str) -> None:
        raise Unavailable(self.name, f"{masked(self.url)} comes from the environment and cannot be {verb} from here")
