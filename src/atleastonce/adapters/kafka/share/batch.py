"""What one poll of a share group's member brought: records that are its own for a while. Pure; no clock of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from confluent_kafka import Message as Record

from atleastonce.adapters.kafka.records import RecordDelivery, bytes_of_fields
from atleastonce.channels import Source

Place: TypeAlias = tuple[int, int]
"""Partition and offset."""


class ShareDelivery(RecordDelivery):
    """A hand-out of a record that a share group counts."""

    __slots__ = ()

    def again(self) -> ShareDelivery:
        """See `RecordDelivery.again`."""
        offset: int = self.position  # type: ignore[assignment]
        new = ShareDelivery(self.source, self.stream, offset, self.epoch, self.token, self.size, self.raw)
        new.count, new.lease_until = self.count, self.lease_until
        return new


def deliveries(
    records: Iterable[Record], source: Source, epoch: int, token: object, until: float
) -> list[ShareDelivery]:
    """The deliveries of ``records``, which are locked until ``until`` (of the monotonic clock)."""
    topic, made = source.channel.name, []
    for record in records:
        key = record.key()
        size = len(record) + bytes_of_fields(record) + (0 if key is None else len(key))
        stream, offset = f"{topic}/{record.partition()}", record.offset()
        new = ShareDelivery(source, stream, offset, epoch, token, size, record)  # type: ignore[arg-type]
        new.count = record.delivery_count() or 1
        new.lease_until = until
        made.append(new)
    return made


class Batch:
    """The records of one poll that are not settled. Belongs to the member's thread; only `again` is called on the loop."""

    def __init__(self) -> None:
        self._open: dict[Place, ShareDelivery] = {}
        self._lost: set[Place] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def live(self) -> int:
        """How many may still be settled."""
        return len(self._open) - len(self._lost)

    @property
    def until(self) -> float:
        """When the locks of those end; of one poll, all at once."""
        return next((each.lease_until for each in self._open.values()), 0.0)

    def add(self, came: Iterable[ShareDelivery]) -> None:
        """Note what was received."""
        for delivery in came:
            self._open[place_of(delivery)] = delivery

    def again(self, delivery: ShareDelivery) -> bool:
        """``delivery`` takes the place of an earlier hand-out of the same record, if that could still be settled."""
        place = place_of(delivery)
        held = self._open.get(place)
        if held is None or held.epoch != delivery.epoch or place in self._lost:
            return False
        self._open[place] = delivery
        return True

    def settled(self, delivery: ShareDelivery) -> bool:
        """Take ``delivery`` off; whether it could still be settled, in this epoch."""
        place = place_of(delivery)
        held = self._open.get(place)
        if held is None or held.epoch != delivery.epoch or place in self._lost:
            return False
        del self._open[place]
        return True

    def lose(self, some: Iterable[ShareDelivery]) -> None:
        """These are not settled any more. They stay open: the client remembers them."""
        for delivery in some:
            place = place_of(delivery)
            held = self._open.get(place)
            if held is not None and held.epoch == delivery.epoch:
                held.lost = True
                self._lost.add(place)

    def end(self) -> bool:
        """Lose all; whether there was one that was not lost."""
        live = self.live > 0
        self.lose(list(self._open.values()))
        return live

    def clear(self) -> list[Place]:
        """Take off all; where they lie."""
        places = list(self._open)
        self._open.clear()
        self._lost.clear()
        return places


def place_of(delivery: ShareDelivery) -> Place:
    """Where ``delivery``'s record lies."""
    return int(delivery.stream.rpartition("/")[2]), delivery.position  # type: ignore[return-value]
