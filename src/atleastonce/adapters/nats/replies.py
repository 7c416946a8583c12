"""One inbox for all answers of one connection: confirms of publishes and settlements, and JetStream's answers to questions.

One subscription, a number for each expected answer, and one future for each list of them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from atleastonce.adapters.nats.faults import ApiError, ApiFailure, NoResponders, denied_subject
from atleastonce.adapters.nats.wire import Wire
from atleastonce.contract import Outcome
from atleastonce.errors import PermissionDenied

NOBODY = b"NATS/1.0 503"


class Batch:
    """Answers that somebody waits for together. ``read`` makes an outcome of one."""

    __slots__ = ("done", "left", "outcomes", "read")

    def __init__(self, size: int, read: Callable[[int, bytes, bytes], Outcome]) -> None:
        self.outcomes: list[Outcome | None] = [None] * size
        self.left = size
        self.read = read
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, position: int, outcome: Outcome) -> None:
        """``outcome`` for one item; a second one is ignored."""
        if self.outcomes[position] is None:
            self.outcomes[position] = outcome
            self.left -= 1
            if not self.left and not self.done.done():
                self.done.set_result(None)

    def fill(self, outcome: Outcome) -> None:
        """``outcome`` for everything that has none."""
        for position, each in enumerate(self.outcomes):
            if each is None:
                self.end(position, outcome)


class _Answer(msgspec.Struct):
    error: ApiError | None = None


_read_answer = msgspec.json.Decoder(_Answer)
_read_object = msgspec.json.Decoder(dict[str, Any])


def error_in(body: bytes) -> ApiError | None:
    """JetStream's error in an answer, if it is one."""
    if b'"error"' not in body:
        return None
    try:
        return _read_answer.decode(body).error
    except (msgspec.DecodeError, RecursionError) as error:
        return ApiError(500, 0, f"an answer that is none: {error}")


def _read(body: bytes) -> dict[str, Any] | ApiFailure:
    if (error := error_in(body)) is not None:
        return ApiFailure(error)
    try:
        return _read_object.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        return ApiFailure(ApiError(500, 0, f"an answer that is none: {error}"))


class Replies:
    """The inbox of one connection."""

    def __init__(self, wire: Wire, prefix: str) -> None:
        self.wire = wire
        self.late = 0
        """Answers that nobody waited for any more."""
        self._inbox = f"{prefix}.{secrets.token_hex(11)}.".encode()
        self._skip = len(self._inbox)
        self._waiting: dict[int, tuple[Batch, int]] = {}
        self._questions: dict[int, tuple[str, asyncio.Future[bytes]]] = {}
        self._last = 0
        wire.on_denied = lambda said: self.denied(denied_subject(said), said)
        wire.listen(f"{self._inbox.decode()}*", self._arrived)

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, batch: Batch, position: int) -> bytes:
        """The subject that the answer for one item of ``batch`` has to come to."""
        self._last = number = self._last + 1
        self._waiting[number] = (batch, position)
        return b"%b%d" % (self._inbox, number)

    def abandon(self, batch: Batch) -> None:
        """Nobody waits for ``batch`` any more."""
        for number in [number for number, (each, _) in self._waiting.items() if each is batch]:
            del self._waiting[number]

    def _arrived(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        try:
            number = int(subject[self._skip :])
        except ValueError:  # anybody may publish to our inbox, and must not end the connection by it
            self.late += 1
            return
        item = self._waiting.pop(number, None)
        if item is not None:
            batch, position = item
            batch.end(position, batch.read(position, headers, body))
            return
        question = self._questions.get(number)
        if question is None or question[1].done():
            self.late += 1
        elif headers.startswith(NOBODY):
            question[1].set_exception(NoResponders(f"nobody answers at {question[0]}"))
        else:
            question[1].set_result(body)

    async def ask(self, subject: str, question: object, seconds: float) -> dict[str, Any]:
        """One of JetStream's questions and its answer.

        Raises:
            ApiFailure: it answered with an error.
            NoResponders: there is no JetStream.
            PermissionDenied: the server does not let us ask.
            Exception: no answer, or the connection is gone.
        """
        (answer,) = await self.ask_all(subject, [question], seconds)
        if isinstance(answer, ApiFailure):
            raise answer
        return answer

    async def ask_all(
        self, subject: str, questions: Sequence[object], seconds: float
    ) -> list[dict[str, Any] | ApiFailure]:
        """Several questions at one subject, sent as one: for each the answer, or the error that it was answered with.

        Raises:
            Exception: as `ask`, if one of them has no answer.
        """
        if self.wire.lost is not None:
            raise self.wire.lost
        loop, to = asyncio.get_running_loop(), subject.encode()
        lines: list[bytes] = []
        asked: dict[int, asyncio.Future[bytes]] = {}
        for question in questions:
            self._last = number = self._last + 1
            asked[number] = answer = loop.create_future()
            self._questions[number] = (subject, answer)
            payload = b"" if question is None else msgspec.json.encode(question)
            lines.append(b"PUB %b %b%d %d\r\n%b\r\n" % (to, self._inbox, number, len(payload), payload))
        try:
            self.wire.put(b"".join(lines))
            with self.wire.silence.until("an answer of JetStream"):
                async with asyncio.timeout(seconds):
                    bodies = await asyncio.gather(*asked.values())
        except TimeoutError:
            raise TimeoutError(f"no answer to {subject} within {seconds:g} s") from None
        finally:
            for number in asked:
                del self._questions[number]
        return [_read(body) for body in bodies]

    def denied(self, subject: str, said: str) -> None:
        """The server dropped what went to ``subject``: whoever asked there is told."""
        if subject == f"{self._inbox.decode()}*":
            text = f"{said}; every answer comes there: allow it, or set inbox_prefix to what is allowed"
            self.wire.end(PermissionDenied(text))
            return
        for asked, answer in self._questions.values():
            if asked == subject and not answer.done():
                answer.set_exception(PermissionDenied(said))

    def fail(self, reason: Exception, outcome: Outcome) -> None:
        """The connection is gone."""
        waiting, self._waiting = self._waiting, {}
        for batch, position in waiting.values():
            batch.end(position, outcome)
        for _, answer in self._questions.values():
            if not answer.done():
                answer.set_exception(reason)
