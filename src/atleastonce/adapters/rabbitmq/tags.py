"""Which deliveries of a channel are unsettled, and the fewest frames that settle some of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from atleastonce.adapters.rabbitmq.frames import ack_frame, nack_frame, reject_frame
from atleastonce.contract import OK, STALE, Ack, Code, Delivery, Outcome, Reject, Release, Settlement, rejected

_LATER = rejected(Code.INVALID, "RabbitMQ delays through waiting rooms, not by settling")


class Tags:
    """The unsettled delivery tags of one channel, oldest first, with their deliveries once handed out.

    A tag that was settled is never sent again: the second time it closes the channel, and on another channel it settles
    somebody else's message.

    Args:
        channel: its number.
        epoch: of its deliveries.
        keep: whether what is released stays unsettled until the channel closes, which returns everything in its order. What is
            given back one by one comes again behind what is on its way to us already.
    """

    def __init__(self, channel: int, epoch: int, *, keep: bool = False) -> None:
        self.stale = 0
        """Settlements of other epochs, dropped."""
        self.bytes = 0
        self._channel = channel
        self._epoch = epoch
        self._keep = keep
        self._kept: set[int] = set()  # released, and unsettled until the channel closes
        self._open: dict[int, tuple[int, Delivery | None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def arrived(self, tag: int, size: int) -> None:
        """The broker has handed out ``tag``."""
        self._open[tag] = (size, None)
        self.bytes += size

    def handed_out(self, tag: int, delivery: Delivery) -> None:
        """It was handed on."""
        self._open[tag] = (self._open[tag][0], delivery)

    def lose(self) -> None:
        """The channel is gone: mark what is out."""
        for _, delivery in self._open.values():
            if delivery is not None:
                delivery.lost = True
        self._open.clear()
        self._kept.clear()
        self.bytes = 0

    def give_back(self, tags: Sequence[int]) -> bytes:
        """The frames that release deliveries which were never handed out."""
        for tag in tags:
            self._remove(tag)
        return b"".join([nack_frame(self._channel, tag) for tag in tags])

    def settle(self, batch: Sequence[Settlement], *, alive: bool) -> tuple[list[Outcome], bytes]:
        """An outcome for each of ``batch``, and the frames to send."""
        outcomes: list[Outcome] = []
        frames: list[bytes] = []
        acks: set[int] = set()
        channel, unsettled = self._channel, self._open
        for delivery, verdict in batch:
            tag = delivery.token
            if delivery.epoch != self._epoch or not alive:
                self.stale += 1
                outcomes.append(STALE)
                continue
            outcome = OK
            if (
                tag in unsettled and tag not in acks and tag not in self._kept
            ):  # else: settled before, and the first verdict wins
                if isinstance(verdict, Ack):
                    acks.add(tag)
                elif isinstance(verdict, Release) and self._keep:
                    self._kept.add(tag)
                elif isinstance(verdict, Release):
                    frames.append(nack_frame(channel, tag))
                    self._remove(tag)
                elif isinstance(verdict, Reject):
                    frames.append(reject_frame(channel, tag, requeue=False))
                    self._remove(tag)
                elif verdict.delay > 0:
                    outcome = _LATER
                else:
                    # Unlike nack it counts as a delivery on every version.
                    frames.append(reject_frame(channel, tag, requeue=True))
                    self._remove(tag)
            outcomes.append(outcome)
        if acks:
            frames.append(self._ack(acks))
        return outcomes, b"".join(frames)

    def _ack(self, acks: set[int]) -> bytes:
        """All up to the first gap with one frame, the others one by one."""
        last = run = 0
        for tag in self._open:
            if tag not in acks:
                break
            last, run = tag, run + 1
        frames = [ack_frame(self._channel, last, multiple=run > 1)] if run else []
        for tag in sorted(acks):
            self._remove(tag)
            if tag > last:
                frames.append(ack_frame(self._channel, tag))
        return b"".join(frames)

    def _remove(self, tag: int) -> None:
        self.bytes -= self._open.pop(tag)[0]
