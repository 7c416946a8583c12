"""What a backend supplies so that the suite can run against it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from atleastonce.adapters import open_adapter
from atleastonce.channels import Channel, Queue
from atleastonce.contract import Adapter


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message as the broker's own client library sees it.

    Attributes:
        body: the payload.
        key: None where the broker has no keys of its own, or the message has none.
        headers: as text; values that are no text are left out.
    """

    body: bytes
    key: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class RawClient(Protocol):
    """The broker's own client library, without a line of ours: proof that others can read us and we can read them."""

    async def publish(self, queue: Queue[Any], message: RawMessage) -> None:
        """Put one message into ``queue``, durably, as any program of another language would."""

    async def read(self, queue: Queue[Any]) -> RawMessage:
        """Take one message out of ``queue``; raise `AssertionError` if none comes within a few seconds."""


class KillableBroker(Protocol):
    """A broker process that belongs to one case, so that killing it disturbs no other."""

    @property
    def url(self) -> str: ...

    async def kill(self) -> None:
        """SIGKILL it, and return when it is dead. Its data stays."""

    async def start(self) -> None:
        """Start it again with the same address and data, and return when it serves."""

    async def pause(self) -> None:
        """SIGSTOP it: connections stay open and nothing is answered any more."""

    async def resume(self) -> None:
        """SIGCONT it."""


class Harness:
    """One backend under test. Override what differs; the defaults claim nothing.

    Several tests run at a time against one broker, in one process and in several: every channel that the suite makes
    has a name of its own.

    Attributes:
        name: the backend's name in the report.
        known_gaps: cases that fail today, by id, each with its reason (and a link where it is somebody else's). A gap
            that starts to pass fails the run, so that the list stays true.
        unsteady: gaps that pass now and then, by id, each with its reason. They are listed and not run: neither a pass nor a
            failure of theirs says anything. For what chance decides inside a backend; never for a case that is only slow.
        url: its address, for `atleastonce.adapters.open_adapter` here and in other processes.
        options: client options for every adapter of the suite.
        short_lease: the options that make leases about ``lease`` seconds long, where they can be set.
        lease: how long those leases are, in seconds. Too short: cases fail on a busy machine, because a lease ends while
            its message is still being settled. Too long: the suite waits for them, about ten times.
        patience: how long anything may take that should happen "at once", in seconds.
        late: seconds by which a delayed message may be late: what the broker rounds up to, and a busy machine.
        settle_lag: seconds between the answer to a settlement and its being stored; 0 where answered means stored. Logs that
            commit in intervals have one, and repeat after a crash what was settled within it.
        newborn: seconds that a channel needs after its declaration before its broker may be killed, where brokers are known
            to lose their youngest channels in a crash; 0 where they are not.
        other_processes: whether another process that opens ``url`` meets the same broker.
        killable: whether `own_broker` gives one.
        raw: the broker's own client.
    """

    name: str = ""
    known_gaps: Mapping[str, str] = {}
    unsteady: Mapping[str, str] = {}
    url: str = ""
    options: Mapping[str, Any] = {}
    short_lease: Mapping[str, Any] = {}
    lease: float = 1.0
    patience: float = 20.0
    late: float = 3.0
    settle_lag: float = 0.0
    newborn: float = 0.0
    other_processes: bool = True
    killable: bool = False
    raw: RawClient | None = None

    partitions: ClassVar[int] = 4
    """Of channels that several consumers share, where the broker has partitions."""

    def adapter(self, *, url: str | None = None, short_lease: bool = False) -> Adapter:
        """A new client of the broker at ``url`` (default: `url`), not yet opened. Two of them share nothing but the
        broker."""
        return open_adapter(url or self.url, {**self.options, **(self.short_lease if short_lease else {})})

    def broker_version(self) -> str:
        """What was tested, for the report: ``"Apache Kafka 4.3.1"``."""
        return ""

    def unreachable(self) -> Adapter | None:
        """A client for an address where nothing listens; None where there is no such thing."""
        return None

    def unauthorised(self) -> Adapter | None:
        """A client with credentials that the broker refuses; None where it asks for none."""
        return None

    def conflicting(self, name: str) -> tuple[Channel[Any], Channel[Any]] | None:
        """Two declarations of the channel ``name`` that cannot both hold; None where channels have no settings."""
        return None

    def own_broker(self) -> AbstractAsyncContextManager[KillableBroker]:
        """A fresh broker for one case, ended with the block. Only called where ``killable``."""
        raise NotImplementedError(f"{type(self).__name__} says it is killable and gives no own_broker()")
