"""What asking gives, besides answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from atleastonce.errors import DecodeError, RemoteError

T = TypeVar("T")


class Gathered(list[T]):
    """The answers of several responders, in the order in which they came.

    Attributes:
        errors: what others answered instead, and a `DecodeError` for each answer that does not decode.
    """

    def __init__(self, replies: Iterable[T], errors: Sequence[RemoteError | DecodeError] = ()) -> None:
        super().__init__(replies)
        self.errors = list(errors)


class RequestStatus(msgspec.Struct, frozen=True):
    """What has become of the requests of one connection.

    Attributes:
        waiting: without an answer yet.
        answered: with one; with any, where ``gather`` was to wait for all.
        expired: given up without one.
        late: answers that came after their asker had given up; dropped.
        duplicate: further answers to one request; dropped.
        unknown: answers to what nobody here asked: forged, or of another life of the inbox; dropped.
    """

    waiting: int
    answered: int
    expired: int
    late: int
    duplicate: int
    unknown: int
