"""A connection of psycopg that can take a long answer in few pieces."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Generator
from typing import Any

from psycopg import AsyncConnection
from psycopg.waiting import Ready, Wait

# Between two pieces of an answer. Shorter: more turns of the loop. Longer: the answer is there, and nobody takes it.
_PAUSE = 0.001

# Pieces that are read in one turn of the loop, about a megabyte. Fewer: more turns. More: the loop does nothing else meanwhile.
_AT_ONCE = 100

_MORE = object()
_POLLS = hasattr(select, "poll")  # not on Windows


class Connection(AsyncConnection[Any]):
    """psycopg reads 8 to 16 KB at a time, and for each has the loop watch the socket anew: of a look at an outbox that is a quarter
    of what the client does. Who is in no hurry reads all that is there, and then lets more come together.

    Attributes:
        unhurried: whether an answer that is longer than one piece is read every other millisecond.
    """

    unhurried = False

    async def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        """See psycopg. Cancelled during a pause, the connection stays in the middle of an answer: pools throw it away then."""
        if not self.unhurried or not _POLLS:
            return await super().wait(gen, *args, **options)
        socket = select.poll()
        socket.register(self.fileno(), select.POLLIN)
        ready: int | None = None  # to begin with
        while (found := await super().wait(_pieces(gen, ready, socket), *args, **options)) is _MORE:
            await asyncio.sleep(_PAUSE)
            ready = Ready.R  # which reads nothing if nothing has come
        return found


def _pieces(gen: Generator[Any, Any, Any], ready: int | None, socket: select.poll) -> Generator[Any, Any, Any]:
    """What ``gen`` does, until it has read what was there and would wait for more: then `_MORE`."""
    drained = False
    read = 0
    try:
        while True:
            state = gen.send(ready)
            if ready == Ready.R and state == Wait.R and not drained:
                read += 1
                if read == _AT_ONCE or not socket.poll(0):
                    return _MORE
                continue
            ready = yield state
            # psycopg begins once more after an interrupt, to read what nobody wants any more. To the end, or it is left half read.
            drained = drained or ready is None
    except StopIteration as end:
        return end.value
