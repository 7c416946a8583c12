"""Requests and answers over core NATS, as clients of any kind send them: nothing is kept, and the server says at once when nobody
listens."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from atleastonce import wire
from atleastonce.adapters.nats import faults
from atleastonce.adapters.nats.config import Config
from atleastonce.adapters.nats.envelope import Refused
from atleastonce.adapters.nats.link import Link
from atleastonce.adapters.nats.names import subject_for
from atleastonce.adapters.nats.replies import NOBODY, Replies
from atleastonce.adapters.nats.unkept import Reader, Writer
from atleastonce.contract import OK, Arrived, AskingHeaders, Code, Outcome, Outgoing, Reply, ReplyTo, rejected, unknown
from atleastonce.errors import AtLeastOnceError

_SUBJECT = re.compile(r"[!-)+-=?-~]{1,400}")  # printable, without spaces and wildcards
_WAY = re.compile(rf"{_SUBJECT.pattern}(?: {_SUBJECT.pattern})?")  # one, and one for the answer
_TOKENS = re.compile(r"[A-Za-z0-9_=-]{1,64}(\.[A-Za-z0-9_=-]{1,64}){0,7}")

_FLUSH: Final = 256 * 1024


def is_inbox(address: str, prefix: str) -> bool:
    """Whether ``address`` is a subject below the prefix of inboxes: the clients' usual one, or the one that is set here."""
    head, _, token = address.rpartition(".")
    if token.isalnum() and token.isascii() and len(token) <= 64:
        return _holds_inboxes(head, prefix)
    return _is_inbox(address, prefix)


@lru_cache(1024)
def _holds_inboxes(head: str, prefix: str) -> bool:
    """As `is_inbox`, of all but the last token: of one asker's subjects that is the same."""
    return _is_inbox(f"{head}.0", prefix)


def _is_inbox(address: str, prefix: str) -> bool:
    if address.startswith("_INBOX."):
        return _TOKENS.fullmatch(address, 7) is not None
    return address.startswith(f"{prefix}.") and _TOKENS.fullmatch(address, len(prefix) + 1) is not None


class CorePublisher:
    """Requests and answers on their way out. There are no confirms: what the socket took is ``ok``."""

    def __init__(self, config: Config, link: Link) -> None:
        self._config = config
        self._link = link
        self._writer = Writer()

    async def send(self, items: Sequence[Outgoing]) -> list[Outcome]:
        """One outcome each, as `atleastonce.contract.Adapter.send`."""
        if not items:
            return []
        try:
            replies = self._link.replies or await self._link.get(self._config.send_timeout)
        except AtLeastOnceError as error:
            return [faults.outcome_of(faults.classify(error))] * len(items)
        outcomes: list[Outcome] = []
        frames: list[bytes] = []
        size, largest = 0, replies.wire.largest
        try:
            for item in items:
                made = self._frame(item, largest)
                if isinstance(made, Outcome):
                    outcomes.append(made)
                    continue
                outcomes.append(OK)
                frames.append(made)
                size += len(made)
                if size > _FLUSH:
                    replies.wire.put(b"".join(frames))
                    frames, size = [], 0
                    await replies.wire.drained()
            if frames:
                replies.wire.put(b"".join(frames))
            await replies.wire.drained()
        except OSError as error:
            lost = unknown(Code.UNAVAILABLE, f"the connection was lost: {error}")
            return [lost if each is OK else each for each in outcomes] + [lost] * (len(items) - len(outcomes))
        return outcomes

    def _frame(self, item: Outgoing, largest: int) -> bytes | Outcome:
        to, message = item.destination, item.message
        headers = message.headers
        if isinstance(to, ReplyTo):
            subject, back = to.name, ""
        elif isinstance(headers, AskingHeaders):
            subject, back = subject_for(to), headers.address
        else:
            subject, back = subject_for(to), headers.get(wire.REPLY_TO) or ""
        way = f"{subject} {back}" if back else subject
        if not _WAY.fullmatch(way):
            wrong = back if _SUBJECT.fullmatch(subject) else subject
            return rejected(Code.INVALID, f"{wrong[:80]!r} is no subject")
        if item.delay > 0:
            return rejected(Code.INVALID, "NATS does not delay what is published")
        try:
            block = self._writer.block(message)
        except Refused as refused:
            return rejected(Code.INVALID, str(refused))
        total = len(block) + len(message.body)
        if total > largest:
            return rejected(Code.TOO_LARGE, f"{total} bytes with headers, over the server's max_payload {largest}")
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (way.encode(), len(block), total, block, message.body)


class CoreInbox:
    """The subjects below one random token: one for each request."""

    def __init__(self, link: Link, arrived: Arrived) -> None:
        self._link = link
        self._subject = f"{link.config.inbox_prefix}.{secrets.token_hex(11)}"
        self._skip = len(self._subject) + 1
        self._arrived = arrived
        self._reader = Reader()
        self._batch: list[Reply] = []
        self._sid = b""
        self._replies: Replies | None = None

    @classmethod
    async def open(cls, link: Link, arrived: Arrived) -> CoreInbox:
        """Listen on the connection that is, and on each that follows. Raises as `Link.get`, or what the server said."""
        inbox = cls(link, arrived)
        replies = await link.get(link.config.connect_timeout)
        inbox.connected(replies)
        link.guests.add(inbox)
        try:
            async with asyncio.timeout(link.config.request_timeout):
                await replies.wire.ping()  # a refusal to let us listen comes before its answer
        except BaseException:
            await inbox.close()
            raise
        return inbox

    def address(self, correlation: str) -> str:
        return f"{self._subject}.{correlation}"

    async def close(self) -> None:
        self._link.guests.discard(self)
        replies, self._replies = self._replies, None
        if replies is not None and replies.wire.lost is None:
            replies.wire.mute(self._sid)
            replies.wire.forget(self._sid)

    def _take(self, subject: bytes, _reply: bytes, block: bytes, body: bytes) -> None:
        correlation = subject[self._skip :].decode("ascii", "replace")
        if block.startswith(NOBODY):
            self._batch.append(Reply(correlation, None))
        else:
            self._batch.append(Reply(correlation, self._reader.read(block, body, correlation)))

    # ----------------------------------------------------------------------------------------------------- link's guest

    def connected(self, replies: Replies) -> None:
        """Answers that come to the next connection have the same addresses."""
        if replies is not self._replies:
            self._replies = replies
            self._sid = replies.wire.listen(f"{self._subject}.*", self._take)

    def disconnected(self, reason: Exception) -> None:
        """What is answered meanwhile goes nowhere."""

    def denied(self, subject: str, said: str) -> None:
        """As for the inbox of confirms, whose prefix is the same: the link tells."""

    def after_read(self) -> None:
        """Hand over what one read of the socket has brought."""
        if self._batch:
            batch, self._batch = self._batch, []
            self._arrived(batch)
