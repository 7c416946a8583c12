"""Direct Get: what lies in a stream, many messages for one question, each as it was stored.

The API's way (``STREAM.MSG.GET``) has one question for each message, and an answer in JSON and base64: five times the server's
work. But any copy of a stream may answer here: a replica that is behind, or a mirror that never forgets. So it is asked where
there is one copy, and an answer that comes from elsewhere, or is none, is not taken.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec

from atleastonce.adapters.nats.envelope import status_of
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.replies import Replies
from atleastonce.adapters.nats.stored import Stored
from atleastonce.channels import Source
from atleastonce.contract import Delivery

_PORTION: Final = 1000
_PORTION_BYTES: Final = 2**20
"""Of one answer, which the server exceeds by its last message. Two of them lie in memory. Less: the way to the server shows."""

_EOB, _NOTHING_THERE = 204, 404
_TAIL: Final = re.compile(
    rb"(\d{1,19})\r\nNats-Time-Stamp: ([^\r]+)\r\nNats-Num-Pending: \d+\r\nNats-Last-Sequence: \d+\r\n\r\n"
)
"""What ends the header block of each message of an answer, from its sequence on. A server before 2.11 answers with one message
that has no count of what follows."""


class NotServed(Exception):
    """Nobody answers who may be believed: ask the stream's leader, message by message."""


def has_one_copy(config: Mapping[str, Any]) -> bool:
    """Whether the stream of this configuration answers here, and who answers knows all of it."""
    return bool(config.get("allow_direct")) and int(config.get("num_replicas") or 1) == 1


async def lists(
    link: Link, stream: str, source: Source, subject: str, begin: int, end: int
) -> AsyncGenerator[list[Delivery]]:
    """What is there of ``subject`` from sequence ``begin`` to ``end``, both included.

    Raises:
        NotServed: what was not yielded has to be asked for in another way.
        Exception: as `Link.get`; TimeoutError; the connection is gone.
    """
    replies = await link.get(link.config.request_timeout)
    answers = _Answers(link, replies, stream, source, subject)
    coming = asyncio.ensure_future(answers.portion(begin))
    try:
        while True:
            found, following = await coming
            if following is not None and following <= end:
                coming = asyncio.ensure_future(answers.portion(following))  # while somebody reads these
            if found and int(found[-1].position) > end:  # it came meanwhile
                found = [each for each in found if int(each.position) <= end]
            if found:
                yield found
            if following is None or following > end:
                return
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        answers.close()


class _Answers:
    """One question at a time, and what comes in answer."""

    def __init__(self, link: Link, replies: Replies, stream: str, source: Source, subject: str) -> None:
        self._link = link
        self._replies = replies
        self._source = source
        self._subject = subject
        self._asked = f"{link.config.api}.DIRECT.GET.{stream}"
        self._mark = f"\r\nNats-Stream: {stream}\r\nNats-Subject: {subject}\r\nNats-Sequence: ".encode()
        self._found: list[Delivery] = []
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        inbox = f"{link.config.inbox_prefix}.{secrets.token_hex(11)}"
        self._inbox = inbox.encode()
        link.guests.add(self)
        self._sid = replies.wire.listen(inbox, self._came)

    async def portion(self, begin: int) -> tuple[list[Delivery], int | None]:
        """What is there from sequence ``begin`` on, a list of it, and where to go on; None at the end."""
        wire = self._replies.wire
        if wire.lost is not None:
            raise wire.lost
        self._found, self._end = [], asyncio.get_running_loop().create_future()
        asked = {"seq": begin, "next_by_subj": self._subject, "batch": _PORTION, "max_bytes": _PORTION_BYTES}
        question = msgspec.json.encode(asked)
        wire.put(b"PUB %b %b %d\r\n%b\r\n" % (self._asked.encode(), self._inbox, len(question), question))
        with wire.silence.until("an answer of JetStream"):
            status = await self._ended(self._link.config.request_timeout)
        if status not in (_EOB, _NOTHING_THERE):
            raise NotServed
        found = self._found
        return found, int(found[-1].position) + 1 if found and status == _EOB else None

    async def _ended(self, seconds: float) -> int:
        """The status that ends an answer; ``seconds`` without any of it are too long."""
        while True:
            before = len(self._found)
            done, _ = await asyncio.wait((self._end,), timeout=seconds)
            if done:
                return self._end.result()
            if len(self._found) == before:
                raise TimeoutError(f"no answer to {self._asked} within {seconds:g} s")

    def _came(self, _subject: bytes, _reply: bytes, block: bytes, body: bytes) -> None:
        at = block.rfind(self._mark)
        tail = None if at < 0 else _TAIL.fullmatch(block, at + len(self._mark))
        if tail is None:
            # A status, which ends an answer; or a message of somebody else: none of the stream's has another end.
            self._finish(status_of(block)[0])
            return
        # Before it are the fields as they were stored; nothing but the version where there were none.
        stored = block[:at] + b"\r\n\r\n" if at > 8 else b""
        self._found.append(Stored(self._source, int(tail[1]), stored, body, tail[2].decode("ascii", "replace")))

    def _finish(self, status: int) -> None:
        if not self._end.done():
            self._end.set_result(status)

    def close(self) -> None:
        """Listen no longer. What is on its way is dropped."""
        self._link.guests.discard(self)
        wire = self._replies.wire
        if wire.lost is None:
            wire.mute(self._sid)
        wire.forget(self._sid)

    # ----------------------------------------------------------------------------------------------------- link's guest

    def connected(self, replies: Replies) -> None:
        """It is of the connection that it was made on."""

    def disconnected(self, reason: Exception) -> None:
        """What is awaited does not come any more."""
        if not self._end.done():
            self._end.set_exception(reason)

    def denied(self, subject: str, said: str) -> None:
        """We may not ask here."""
        if subject in (self._asked, self._inbox.decode()):
            self._finish(0)

    def after_read(self) -> None:
        """Each message was taken when it came."""
