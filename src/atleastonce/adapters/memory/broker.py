"""The broker itself: channels, their sources, and one lock, since a named broker is shared between threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from atleastonce.adapters.memory.source import Entry, Lease, SourceState
from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import OK, Backlog, Code, Drift, Outcome, Outgoing, Settlement, Topology, rejected
from atleastonce.errors import ConfigurationError, NotFound
from atleastonce.message import Message
from atleastonce.wire import ID, read_id


class _Channel:
    """A declared channel. Before its first group, a topic keeps its messages in a source that this group then takes."""

    __slots__ = ("fifo", "groups", "kind", "name")

    def __init__(self, channel: Channel[Any]) -> None:
        self.name = channel.name
        self.kind = _kind(channel)
        self.fifo = isinstance(channel, Queue | Topic) and channel.fifo
        self.groups: dict[str | None, SourceState] = {None: SourceState(self.name, self.fifo)}

    def add_group(self, source: Source) -> None:
        if source.group in self.groups:
            return
        state = self.groups.pop(None, None) or SourceState(source.name, self.fifo)
        state.name = source.name
        self.groups[source.group] = state

    def remove_group(self, group: str | None) -> None:
        if (state := self.groups.pop(group, None)) is not None:
            _end(state)
        if not self.groups:
            self.groups[None] = SourceState(self.name, self.fifo)


class MemoryBroker:
    """Queues and topics in this process's memory.

    Args:
        clock: seconds that never go back; tests put their own here and call `wake` after moving it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        self._channels: dict[str, _Channel] = {}
        self._seq = 0

    # -------------------------------------------------------------------------------------------------------- topology

    def declare(self, topology: Topology, create: bool) -> list[Drift]:
        drifts: list[Drift] = []
        with self._lock:
            for channel in (*topology.channels, *topology.dead_letters):
                self._declare_channel(channel, create, drifts)
            for source in topology.sources:
                found = self._declare_channel(source.channel, create, drifts)
                if found is None or found.kind != _kind(source.channel):
                    continue
                if source.group not in found.groups:
                    if create:
                        found.add_group(source)
                    else:
                        drifts.append(Drift(source.name, "missing", "group", "", breaks=True))
        return list(dict.fromkeys(drifts))

    def _declare_channel(self, channel: Channel[Any], create: bool, drifts: list[Drift]) -> _Channel | None:
        if not isinstance(channel, Queue | Topic):
            raise ConfigurationError(f"{channel.name}: declare it as a Queue or a Topic")
        if unknown := channel.options.get("memory"):
            raise ConfigurationError(f"{channel.name}: memory has no channel options, yet it got {', '.join(unknown)}")
        kind = _kind(channel)
        found = self._channels.get(channel.name)
        if found is None:
            if not create:
                drifts.append(Drift(channel.name, "missing", kind, "", breaks=True))
                return None
            found = self._channels[channel.name] = _Channel(channel)
        if found.kind != kind:
            drifts.append(Drift(channel.name, "kind", kind, found.kind, breaks=True))
        elif found.fifo != channel.fifo:
            drifts.append(Drift(channel.name, "fifo", str(channel.fifo), str(found.fifo), breaks=channel.fifo))
        if channel.single_active and not channel.fifo:
            drifts.append(Drift(channel.name, "single_active", "True", "unsupported; use fifo=True", breaks=True))
        return found

    def delete(self, topology: Topology) -> None:
        with self._lock:
            for source in topology.sources:
                found = self._channels.get(source.channel.name)
                if found is not None and source.group is not None:
                    found.remove_group(source.group)
            queues = [source.channel for source in topology.sources if source.group is None]
            for channel in (*topology.channels, *topology.dead_letters, *queues):
                if (gone := self._channels.pop(channel.name, None)) is not None:
                    for state in gone.groups.values():
                        _end(state)

    def state(self, source: Source) -> SourceState:
        """The source's messages.

        Raises:
            NotFound: it was not declared.
        """
        with self._lock:
            found = self._channels.get(source.channel.name)
            if found is None or found.kind != _kind(source.channel) or source.group not in found.groups:
                raise NotFound(f"{source.name}: no such source in this memory broker; declare it first")
            return found.groups[source.group]

    # ---------------------------------------------------------------------------------------------------------- moving

    def publish(self, batch: Sequence[Outgoing], max_bytes: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        wall = time.time()
        with self._lock:
            now = self.clock()
            for item in batch:
                message = item.message
                size = message.size
                if size > max_bytes:
                    outcomes.append(rejected(Code.TOO_LARGE, f"{size} bytes; this broker takes {max_bytes}"))
                    continue
                targets = self._targets(item.destination)
                if isinstance(targets, Outcome):
                    outcomes.append(targets)
                    continue
                identity = (read_id(message.headers.get(ID)) if message.headers else None) or message.id
                kept = Message(identity, message.body, message.key, message.headers, wall)
                for state in targets:
                    self._seq += 1
                    state.add(Entry(self._seq, kept, now, now + max(0.0, item.delay)), now)
                outcomes.append(OK)
        return outcomes

    def _targets(self, destination: Channel[Any] | Source) -> list[SourceState] | Outcome:
        if isinstance(destination, Source):
            try:
                return [self.state(destination)]
            except NotFound as error:
                return rejected(Code.NOT_FOUND, str(error))
        found = self._channels.get(destination.name)
        if found is None or found.kind != _kind(destination):
            return rejected(Code.NOT_FOUND, f"{destination.name}: no such {_kind(destination)} in this memory broker")
        return list(found.groups.values())

    def claim(self, state: SourceState, limit: int, room: int, lease: float) -> tuple[list[Lease], float]:
        """What is ready, and for a reader that waits the seconds until the next delay or lease ends."""
        with self._lock:
            now = self.clock()
            found = state.claim(limit, room, lease, now)
            return found, 0.0 if found else state.next_time() - now

    def settle(self, state: SourceState, batch: Sequence[Settlement]) -> list[Outcome]:
        with self._lock:
            now = self.clock()
            return [state.settle(delivery.token, verdict, now) for delivery, verdict in batch]

    def extend(self, state: SourceState, leases: Sequence[Lease], seconds: float) -> list[Outcome]:
        with self._lock:
            now = self.clock()
            return [state.extend(lease, seconds, now) for lease in leases]

    def held(self, state: SourceState, leases: Sequence[Lease]) -> list[bool]:
        """For each lease, whether it still runs."""
        with self._lock:
            now = self.clock()
            state.promote(now)
            return [lease.current and lease.entry.visible > now and lease.outcome is None for lease in leases]

    # --------------------------------------------------------------------------------------------------------- looking

    def backlog(self, source: Source) -> Backlog:
        with self._lock:
            return self.state(source).backlog(self.clock())

    def purge(self, source: Source) -> int:
        with self._lock:
            return self.state(source).purge(self.clock())

    def browse(self, channel: Channel[Any], limit: int, only: str | None = None) -> list[tuple[Source, Entry]]:
        """Waiting messages of every group, or of ``only`` one, each message once, oldest first."""
        wanted = None if only is None else Source(channel, only)
        with self._lock:
            found = self._channels.get(channel.name)
            if found is None or found.kind != _kind(channel):
                raise NotFound(f"{channel.name}: no such channel in this memory broker; declare it first")
            now = self.clock()
            groups = found.groups if wanted is None else {wanted.group: self.state(wanted)}
            unique: dict[int, tuple[Source, Entry]] = {}
            for group, state in groups.items():
                source = Source(channel, group) if group or found.kind == "queue" else Source(Queue(channel.name))
                for entry in state.browse(limit, now):
                    unique.setdefault(id(entry.message), (source, entry))
            return sorted(unique.values(), key=lambda pair: pair[1].seq)[:limit]

    def wake(self) -> None:
        """Let every waiting reader look at the clock again, after a test has moved it."""
        with self._lock:
            for channel in self._channels.values():
                for state in channel.groups.values():
                    state.notify()


def _kind(channel: Channel[Any]) -> str:
    return "topic" if isinstance(channel, Topic) else "queue"


def _end(state: SourceState) -> None:
    state.deleted = True
    state.notify()


_named: dict[str, MemoryBroker] = {}
_named_lock = threading.Lock()


def named(name: str) -> MemoryBroker:
    """The process's broker of that name, made at its first mention and kept until `forget` or the process's end."""
    with _named_lock:
        return _named.setdefault(name, MemoryBroker())


def forget(name: str) -> None:
    """Drop the broker of that name with all it holds; who is connected keeps the old one."""
    with _named_lock:
        _named.pop(name, None)
