"""Who waits for the answers to one request: for one of them, or for several."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from atleastonce import wire
from atleastonce.errors import DecodeError, RemoteError
from atleastonce.message import Message
from atleastonce.patterns.replies.letters import error_in


class Waiter(ABC):
    """Who waits.

    Attributes:
        future: done once there is nothing more to wait for.
        doubt: why it is not known whether the request was sent; "" if it was, as far as anybody knows.
    """

    __slots__ = ("doubt", "future")

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.doubt = ""

    @abstractmethod
    def take(self, message: Message) -> bool:
        """An answer came. Whether it counts: of one responder the first does, however often it was asked."""

    @property
    def answered(self) -> bool:
        """Whether an answer has ended it: the last one that it waited for."""
        return False

    @property
    def satisfied(self) -> bool:
        """Whether the end of its time is what it waited for, and something came."""
        return False

    def done(self) -> None:
        """Wait no longer."""
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """There will be no answer."""
        if not self.future.done():
            self.future.set_exception(error)


class One(Waiter):
    """Who waits for one answer: an error is one as well.

    Attributes:
        message: the answer; None until it came.
    """

    __slots__ = ("message",)

    def __init__(self) -> None:
        self.future = asyncio.get_running_loop().create_future()
        self.doubt = ""
        self.message: Message | None = None

    def take(self, message: Message) -> bool:
        self.message = message
        self.done()
        return True

    @property
    def answered(self) -> bool:
        return self.message is not None


class Several(Waiter):
    """Who waits for so many good answers; None: for all that come in time.

    Args:
        enough: how many.
        read: from an answer to what its asker gets. What it raises besides `DecodeError` ends the wait.

    Attributes:
        replies: the good answers, read.
        errors: the others, and those that do not decode.
    """

    __slots__ = ("_enough", "_read", "_seen", "errors", "replies")

    def __init__(self, enough: int | None, read: Callable[[Message], Any]) -> None:
        super().__init__()
        self.replies: list[Any] = []
        self.errors: list[RemoteError | DecodeError] = []
        self._enough = enough
        self._read = read
        self._seen: set[str] = set()

    def take(self, message: Message) -> bool:
        responder = message.headers.get(wire.RESPONDER)
        if responder is not None:
            if responder in self._seen:
                return False
            self._seen.add(responder)
        error = error_in(message)
        if error is not None:
            self.errors.append(error)
            return True
        try:
            self.replies.append(self._read(message))
        except DecodeError as undecodable:
            self.errors.append(undecodable)
        except BaseException as failed:  # noqa: BLE001 - a validator of this asker's: the inbox and its other askers go on
            self.fail(failed)
        if self._enough is not None and len(self.replies) >= self._enough:
            self.done()
        return True

    @property
    def satisfied(self) -> bool:
        return self._enough is None and bool(self.replies or self.errors)
