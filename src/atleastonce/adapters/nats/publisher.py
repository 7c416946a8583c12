"""Publishing: confirms pipelined through one inbox, one future for each call, an outcome for each message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from atleastonce.adapters.nats import faults
from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.envelope import Refused, encode
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import subject_for
from atleastonce.adapters.nats.replies import NOBODY, Batch, Replies, error_in
from atleastonce.channels import Source
from atleastonce.contract import OK, Code, Outcome, Outgoing, Scope, Status, rejected, unknown
from atleastonce.errors import AtLeastOnceError, Closed

_CHUNK: Final = 256
"""Messages encoded in one go: between two of these the event loop and other senders have their turn."""

_FLUSH: Final = 256 * 1024
"""Bytes joined for one write to the socket."""

_UNHEARD: Final = unknown(Code.UNAVAILABLE, "nobody answers: no such stream, or it has no leader", scope=Scope.MESSAGE)
"""Until it is known which of the two."""

_STOPPED: Final = unknown(Code.UNAVAILABLE, "not sent: an earlier message of the list is unconfirmed")


class PublishBatch(Batch):
    """One list on its way out."""

    __slots__ = ("subjects",)

    def __init__(self, subjects: list[str]) -> None:
        super().__init__(len(subjects), _read)
        self.subjects = subjects


_NO_CONFIRMATION: Final = unknown(
    Code.UNAVAILABLE, "something answered that is no stream; does another program listen to this subject?"
)


def _read(_position: int, headers: bytes, body: bytes) -> Outcome:
    if not headers and b'"error"' not in body:
        # Whoever listens to a subject may answer on it; only a stream says where it has put the message.
        return OK if b'"stream"' in body and b'"seq"' in body else _NO_CONFIRMATION
    if headers.startswith(NOBODY):
        return _UNHEARD
    error = error_in(body)
    return _NO_CONFIRMATION if error is None else faults.outcome_of(faults.of_api(error))


class Publisher:
    """All that one adapter sends."""

    def __init__(self, config: Config, link: Link, largest: int) -> None:
        self.largest = largest
        """Bytes of body, key and headers of one message."""
        self._config = config
        self._link = link
        self._turn = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._going: set[PublishBatch] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        """As `atleastonce.contract.Adapter.send`."""
        if self._closed:
            raise Closed("the adapter is closed")
        if not items:
            return []
        loop = asyncio.get_running_loop()
        batch = PublishBatch([subject_for(item.destination) for item in items])
        self._going.add(batch)
        self._idle.clear()
        replies: Replies | None = None
        try:
            async with asyncio.timeout(self._config.send_timeout) as limit:
                async with self._turn:  # so that one list's order is kept while others wait for room
                    for start in range(0, len(items), _CHUNK):
                        replies = await self._send_chunk(
                            items, range(start, min(start + _CHUNK, len(items))), batch, replies
                        )
                        # A long list may take long, as long as it goes on.
                        limit.reschedule(loop.time() + self._config.send_timeout)
                if batch.left and replies is not None:
                    with replies.wire.silence.until("confirms of a publish"):
                        await batch.done
                if _UNHEARD in batch.outcomes:
                    await self._explain(batch)
        except TimeoutError:
            text = f"no confirm within {self._config.send_timeout:g} s"
            if replies is not None:
                replies.abandon(batch)
            elif self._link.replies is None:
                text = f"no connection within {self._config.send_timeout:g} s: {self._link.trouble}"
            batch.fill(unknown(Code.TIMEOUT, text))
        except AtLeastOnceError as error:
            batch.fill(faults.outcome_of(faults.classify(error)))
        except OSError as error:
            batch.fill(unknown(Code.UNAVAILABLE, f"the connection was lost: {error}"))
        finally:
            if batch.left and replies is not None:
                replies.abandon(batch)
            self._going.discard(batch)
            if not self._going:
                self._idle.set()
            self.look_again()
        return [outcome for outcome in batch.outcomes if outcome is not None]

    async def close(self) -> None:
        """Take no more, and wait for what is being sent."""
        self._closed = True
        await self._idle.wait()

    def look_again(self) -> None:
        """Let the writer go on if there is room now."""
        room = self._room
        if room is not None and not room.done():
            replies = self._link.replies
            if replies is None or 4 * len(replies) <= 3 * self._config.publish_window:
                room.set_result(None)

    def denied(self, subject: str, said: str) -> None:
        """The server drops what is published there."""
        for batch in self._going:
            for position, each in enumerate(batch.subjects):
                if each == subject:
                    batch.end(position, rejected(Code.PERMISSION, said))

    async def _send_chunk(
        self, items: Sequence[Outgoing], chunk: range, batch: PublishBatch, before: Replies | None
    ) -> Replies:
        replies = self._link.replies or await self._link.get(self._config.send_timeout)
        while len(replies) >= self._config.publish_window and replies.wire.lost is None:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        if replies.wire.lost is not None or (before is not None and replies is not before):
            # The rest of a list is not sent: what came before it is unknown, and must not be overtaken.
            batch.fill(_STOPPED)
            return replies
        frames: list[bytes] = []
        size = 0
        largest, most = min(self.largest, replies.wire.largest), replies.wire.largest
        for position in chunk:
            item = items[position]
            message = item.message
            if item.delay > 0:
                batch.end(position, rejected(Code.INVALID, "NATS does not delay what is published"))
                continue
            to = item.destination
            try:
                block = encode(message, to.group if isinstance(to, Source) else None)
            except Refused as refused:
                batch.end(position, rejected(Code.INVALID, str(refused)))
                continue
            total = len(block) + len(message.body)
            if total > largest and (total > most or message.size > largest):
                text = f"{message.size} bytes (with headers {total}), over {largest} (the server's max_payload: {most})"
                batch.end(position, rejected(Code.TOO_LARGE, text))
                continue
            inbox = replies.expect(batch, position)
            line = b"HPUB %b %b %d %d\r\n" % (batch.subjects[position].encode(), inbox, len(block), total)
            frames += (line, block, message.body, b"\r\n")
            size += total
            if size > _FLUSH:
                replies.wire.put(b"".join(frames))
                frames.clear()
                size = 0
                await replies.wire.drained()
        if frames:
            replies.wire.put(b"".join(frames))
            await replies.wire.drained()
        return replies

    async def _explain(self, batch: PublishBatch) -> None:
        """Tell what does not exist from what has no leader just now."""
        for subject in {s for s, outcome in zip(batch.subjects, batch.outcomes, strict=True) if outcome is _UNHEARD}:
            verdict = _UNHEARD
            try:
                answer = await self._link.ask("STREAM.NAMES", {"subject": subject})
            except Exception as error:  # noqa: BLE001 - then nobody knows
                verdict = Outcome(Status.UNKNOWN, faults.classify(error))
            else:
                if not answer.get("streams"):
                    verdict = rejected(Code.NOT_FOUND, f'no stream takes "{subject}"')
            for position, each in enumerate(batch.outcomes):
                if each is _UNHEARD and batch.subjects[position] == subject:
                    batch.outcomes[position] = verdict
