"""Channels and sources of the file: declared, looked up (with a cache that other processes' changes invalidate), deleted."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from atleastonce.channels import Channel, Queue, Source, Topic
from atleastonce.contract import Drift, Topology
from atleastonce.errors import ConfigurationError

NO_GROUP = ""
"""The name of a queue's one source, and of the one that keeps a topic's messages until its first group takes them."""


class Target(NamedTuple):
    """Where a message goes."""

    channel: int
    fifo: bool
    sources: tuple[int, ...]


class Catalogue:
    """What is declared.

    Attributes:
        sources: the number of each existing source, and whether it is FIFO.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._generation = -1
        self._channels: dict[tuple[str, str], Target] = {}
        self._groups: dict[tuple[str, str, str], Target] = {}
        self.sources: dict[int, bool] = {}

    def invalidate(self) -> None:
        self._generation = -1

    def refresh(self, generation: int) -> None:
        """Read the tables again if ``generation``, which every change of them raises, is a new one."""
        if generation == self._generation:
            return
        members: dict[int, list[tuple[int, str]]] = {}
        for number, channel, name in self._db.execute("SELECT id, channel, name FROM sources ORDER BY id"):
            members.setdefault(channel, []).append((number, name))
        self._channels.clear()
        self._groups.clear()
        self.sources.clear()
        for channel, name, kind, fifo in self._db.execute("SELECT id, name, kind, fifo FROM channels"):
            groups = members.get(channel, [])
            self._channels[name, kind] = Target(channel, bool(fifo), tuple(number for number, _ in groups))
            for number, group in groups:
                self._groups[name, kind, group] = Target(channel, bool(fifo), (number,))
                self.sources[number] = bool(fifo)
        self._generation = generation

    def target(self, destination: Channel[Any] | Source) -> Target | None:
        """Where ``destination`` leads; None where it was not declared."""
        if isinstance(destination, Source):
            channel = destination.channel
            return self._groups.get((channel.name, _kind(channel), destination.group or NO_GROUP))
        return self._channels.get((destination.name, _kind(destination)))

    # --------------------------------------------------------------------------------------------- inside a transaction

    def declare(self, topology: Topology, create: bool) -> list[Drift]:
        drifts: list[Drift] = []
        for channel in (*topology.channels, *topology.dead_letters):
            self._declare(channel, create, drifts)
        for source in topology.sources:
            number = self._declare(source.channel, create, drifts)
            if number is None or self.target(source) is not None:
                continue
            if not create:
                drifts.append(Drift(source.name, "missing", "group", "", breaks=True))
                continue
            waiting = self._groups.get((source.channel.name, _kind(source.channel), NO_GROUP))
            if waiting is not None:
                self._db.execute("UPDATE sources SET name = ? WHERE id = ?", (source.group, waiting.sources[0]))
            else:
                self._db.execute("INSERT INTO sources (channel, name) VALUES (?, ?)", (number, source.group))
            self._changed()
        return list(dict.fromkeys(drifts))

    def _declare(self, channel: Channel[Any], create: bool, drifts: list[Drift]) -> int | None:
        """The channel's number, or None if it is missing or of the other kind."""
        if not isinstance(channel, Queue | Topic):
            raise ConfigurationError(f"{channel.name}: declare it as a Queue or a Topic")
        if unknown := channel.options.get("sqlite"):
            raise ConfigurationError(f"{channel.name}: sqlite has no channel options, yet it got {', '.join(unknown)}")
        if channel.single_active and not channel.fifo:
            drifts.append(Drift(channel.name, "single_active", "True", "unsupported; use fifo=True", breaks=True))
        kind = _kind(channel)
        row = self._db.execute("SELECT id, kind, fifo FROM channels WHERE name = ?", (channel.name,)).fetchone()
        if row is None:
            if not create:
                drifts.append(Drift(channel.name, "missing", kind, "", breaks=True))
                return None
            insert = "INSERT INTO channels (name, kind, fifo) VALUES (?, ?, ?)"
            number = int(self._db.execute(insert, (channel.name, kind, channel.fifo)).lastrowid or 0)
            self._db.execute("INSERT INTO sources (channel, name) VALUES (?, ?)", (number, NO_GROUP))
            self._changed()
            return number
        if row[1] != kind:
            drifts.append(Drift(channel.name, "kind", kind, row[1], breaks=True))
            return None
        if bool(row[2]) != channel.fifo:
            drifts.append(Drift(channel.name, "fifo", str(channel.fifo), str(bool(row[2])), breaks=channel.fifo))
        return int(row[0])

    def delete(self, topology: Topology) -> set[int]:
        """Remove what ``topology`` names; returns the sources that are gone."""
        before = set(self.sources)
        queues = [source.channel for source in topology.sources if source.group is None]
        for channel in (*topology.channels, *topology.dead_letters, *queues):
            if (target := self._channels.get((channel.name, _kind(channel)))) is not None:
                for number in target.sources:
                    self._empty(number)
                self._db.execute("DELETE FROM channels WHERE id = ?", (target.channel,))
                self._changed()
        for source in topology.sources:
            if source.group is not None and (target := self.target(source)) is not None:
                self._empty(target.sources[0])
                left = "SELECT 1 FROM sources WHERE channel = ?"
                if self._db.execute(left, (target.channel,)).fetchone() is None:
                    self._db.execute("INSERT INTO sources (channel, name) VALUES (?, ?)", (target.channel, NO_GROUP))
                self._changed()
        return before - set(self.sources)

    def _empty(self, number: int) -> None:
        """Remove a source, and the messages that no other source of its channel has."""
        self._db.execute(
            """DELETE FROM messages WHERE seq IN (SELECT seq FROM deliveries WHERE source = ?1) AND NOT EXISTS (
                   SELECT 1 FROM sources s JOIN deliveries d ON d.source = s.id AND d.seq = messages.seq
                   WHERE s.channel = messages.channel AND s.id <> ?1)""",
            (number,),
        )
        self._db.execute("DELETE FROM deliveries WHERE source = ?", (number,))
        self._db.execute("DELETE FROM sources WHERE id = ?", (number,))

    def _changed(self) -> None:
        rows = self._db.execute("UPDATE broker SET generation = generation + 1 RETURNING generation").fetchall()
        self.refresh(rows[0][0])


def _kind(channel: Channel[Any]) -> str:
    return "topic" if isinstance(channel, Topic) else "queue"
