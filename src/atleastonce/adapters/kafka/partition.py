"""The partitions that are ours at the moment, shared by the thread that polls and the loop that settles."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from atleastonce.adapters.kafka.vigil import Vigil
from atleastonce.contract import Delivery, Window
from atleastonce.offsets import Mark, OffsetTracker, Point, Range

_NO_WINDOW = Window(1, 1)
"""Of one that nobody settles."""


class Partition:
    """One assignment of one partition; the token of every delivery made under it.

    Never reused: what still runs when the partition is lost keeps a reference to an object that is no longer ``live``,
    and so cannot mark a record of the next assignment.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "committed",
        "committed_at",
        "draining",
        "epoch",
        "live",
        "number",
        "stream",
        "tracker",
        "vigil",
    )

    def __init__(
        self, topic: str, number: int, epoch: int, start: int | None, ahead: tuple[Range, ...], vigil: Vigil
    ) -> None:
        self.number = number
        self.stream = f"{topic}/{number}"
        self.epoch = epoch
        self.live = True
        self.draining = False
        self.tracker: OffsetTracker[Delivery] = OffsetTracker(start, ahead)
        self.vigil = vigil
        # Two counters and no subtraction in place: each is written by one thread only.
        self.bytes_in = 0
        self.bytes_out = 0
        self.committed: tuple[int, str] | None = None
        """Offset and metadata that the broker has confirmed; None while nothing is known to be stored."""
        self.committed_at = 0.0

    def __repr__(self) -> str:
        return f"<Partition {self.stream} epoch={self.epoch} live={self.live}>"


class Assignment:
    """All live partitions of one subscription.

    ``lock`` is held for marking a batch done and for reading a commit point, nothing longer: a settlement either is in
    the last commit of a partition, or finds it gone.
    """

    def __init__(self, topic: str, window: Window = _NO_WINDOW) -> None:
        self.topic = topic
        self._window = window
        self.lock = threading.Lock()
        self.live: dict[int, Partition] = {}
        self.completed = 0
        """Settled so far, over all partitions; written by the loop only."""
        self._epochs: dict[int, int] = {}

    def begin(
        self, number: int, start: int | None, ahead: tuple[Range, ...] = (), mark: Mark | None = None
    ) -> Partition:
        """A new assignment of partition ``number``, where ``mark`` was found."""
        vigil = Vigil(start, mark, self._window, time.monotonic())
        partition = Partition(self.topic, number, self._next_epoch(number), start, ahead, vigil)
        self.live = {**self.live, number: partition}  # replaced, not changed: the loop reads it without the lock
        return partition

    def end(self, partitions: Iterable[Partition]) -> list[tuple[Partition, Point | None, list[Delivery]]]:
        """Their last commit points, and what is still open under them. From here on every settlement is stale."""
        ended: list[tuple[Partition, Point | None, list[Delivery]]] = []
        with self.lock:
            for partition in partitions:
                if not partition.live:
                    continue
                partition.live = False
                self._next_epoch(partition.number)
                open_ = list(partition.tracker.open.values())
                for delivery in open_:
                    delivery.lost = True
                ended.append((partition, partition.tracker.point(), open_))
            self.live = {number: partition for number, partition in self.live.items() if partition.live}
        return ended

    def unreserved(self) -> list[Partition]:
        """Those of which something was received that may not be handed out yet."""
        return [
            partition
            for partition in self.live.values()
            if (position := partition.tracker.position) is not None and partition.vigil.unreserved(position - 1)
        ]

    def points(self) -> list[tuple[Partition, Point]]:
        """What may be committed now."""
        with self.lock:
            points = [(partition, partition.tracker.point()) for partition in self.live.values()]
        return [(partition, point) for partition, point in points if point is not None]

    def held(self) -> int:
        """Records received and not settled: handed out or buffered."""
        return sum(len(partition.tracker.open) for partition in self.live.values())

    def held_bytes(self) -> int:
        """Their bodies, keys and headers."""
        return sum(partition.bytes_in - partition.bytes_out for partition in self.live.values())

    def _next_epoch(self, number: int) -> int:
        self._epochs[number] = epoch = self._epochs.get(number, 0) + 1
        return epoch
