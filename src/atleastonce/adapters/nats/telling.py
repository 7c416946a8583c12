"""Verdicts on their way to the consumer, and its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from atleastonce.adapters.nats.delivery import NatsDelivery
from atleastonce.adapters.nats.replies import NOBODY, Batch, Replies
from atleastonce.contract import OK, Code, Outcome, Scope, rejected, unknown

CUT = unknown(Code.UNAVAILABLE, "the connection was lost before an answer")
NO_CONSUMER = unknown(Code.UNAVAILABLE, "the consumer is gone, or has no leader", scope=Scope.SUBSCRIPTION)

Told = Sequence[tuple[NatsDelivery, bytes]]
"""Deliveries, and the words for each."""


def _read(_position: int, headers: bytes, _body: bytes) -> Outcome:
    return NO_CONSUMER if headers.startswith(NOBODY) else OK


class TellingBatch(Batch):
    """Verdicts that wait for the consumer's answers."""

    __slots__ = ("_places", "_what")

    def __init__(self, what: Told) -> None:
        super().__init__(len(what), _read)
        self._what = what
        self._places: dict[str, int] | None = None

    def denied(self, subject: str, said: str) -> None:
        """The server dropped one of them, if ``subject`` is its."""
        if self._places is None:  # one by one they are denied, and there may be thousands
            self._places = {delivery.token.decode(): place for place, (delivery, _) in enumerate(self._what)}
        if (place := self._places.get(subject)) is not None:
            self.end(place, rejected(Code.PERMISSION, said, scope=Scope.SUBSCRIPTION))


async def confirmed(replies: Replies, what: Told, seconds: float, going: set[TellingBatch]) -> list[Outcome]:
    """Each answered by the consumer itself, which has done it then (a double ack). It answers late acknowledgements alike.
    While it lasts, ``going`` holds the batch.
    """
    batch = TellingBatch(what)
    going.add(batch)
    expect = replies.expect
    frames = [
        b"PUB %b %b %d\r\n%b\r\n" % (delivery.token, expect(batch, position), len(words), words)
        for position, (delivery, words) in enumerate(what)
    ]
    try:
        replies.wire.put(b"".join(frames))
        with replies.wire.silence.until("the consumer's answer to a settlement"):
            async with asyncio.timeout(seconds):
                await batch.done
    except TimeoutError:
        replies.abandon(batch)
        batch.fill(unknown(Code.TIMEOUT, f"no answer from the consumer within {seconds:g} s"))
    finally:
        going.discard(batch)
        if batch.left:
            replies.abandon(batch)
    return [outcome for outcome in batch.outcomes if outcome is not None]


async def flushed(replies: Replies, what: Told, seconds: float, _going: set[TellingBatch]) -> list[Outcome]:
    """All answered by the server that we are connected to, which has read them then."""
    replies.wire.put(b"".join([b"PUB %b %d\r\n%b\r\n" % (each.token, len(words), words) for each, words in what]))
    return [await heard(replies, seconds)] * len(what)


async def heard(replies: Replies, seconds: float) -> Outcome:
    """Whether the server has read all that was written so far."""
    try:
        with replies.wire.silence.until("the server's answer to a ping"):
            async with asyncio.timeout(seconds):
                await replies.wire.ping()
    except TimeoutError:
        return unknown(Code.TIMEOUT, f"no answer from the server within {seconds:g} s")
    except Exception:  # noqa: BLE001 - whatever ended the connection
        return CUT
    return OK
