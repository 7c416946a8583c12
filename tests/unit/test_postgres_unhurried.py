"""A connection of psycopg that takes a long answer in few pieces."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from psycopg.waiting import Ready, Wait

from atleastonce.stores.postgres.unhurried import _AT_ONCE, _MORE, _pieces

PIECE = 8
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    client, server = socket.socketpair()
    client.setblocking(False)
    with client, server:
        yield client, server


def answer(client: socket.socket, size: int) -> Generator[Any, Any, bytes]:
    """Reads as psycopg does: one piece each time that something is ready, and asks again while nothing is."""
    found = b""
    while len(found) < size:
        while not (yield Wait.R):
            continue
        with contextlib.suppress(BlockingIOError):
            found += client.recv(PIECE)
    return found


def ended(step: Generator[Any, Any, Any], sent: Any = None) -> Any:
    with pytest.raises(StopIteration) as raised:
        step.send(sent)
    return raised.value.value


def watched(client: socket.socket) -> select.poll:
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    return poll


def test_what_is_there_is_read_and_the_rest_awaited_out_of_sight(pair: Pair) -> None:
    client, server = pair
    gen, poll = answer(client, 5 * PIECE), watched(client)
    first = _pieces(gen, None, poll)
    assert next(first) == Wait.R
    assert first.send(Ready.NONE) == Wait.R  # the interval in which psycopg looks for interrupts
    server.send(b"a" * 3 * PIECE)
    assert ended(first, Ready.R) is _MORE
    assert ended(_pieces(gen, Ready.R, poll)) is _MORE  # nothing has come
    server.send(b"b" * 2 * PIECE)
    assert ended(_pieces(gen, Ready.R, poll)) == b"a" * 3 * PIECE + b"b" * 2 * PIECE


def test_a_short_answer_is_taken_at_once(pair: Pair) -> None:
    client, server = pair
    step = _pieces(answer(client, PIECE), None, watched(client))
    next(step)
    server.send(b"a" * PIECE)
    assert ended(step, Ready.R) == b"a" * PIECE


def test_an_answer_without_end_leaves_the_loop_its_turns(pair: Pair) -> None:
    client, server = pair
    gen, poll = answer(client, 4 * _AT_ONCE * PIECE), watched(client)
    step = _pieces(gen, None, poll)
    next(step)
    server.send(b"a" * 3 * _AT_ONCE * PIECE)
    assert ended(step, Ready.R) is _MORE
    assert poll.poll(0)


def test_what_psycopg_drains_it_gets_to_the_end(pair: Pair) -> None:
    """After an interrupt it begins with the generator anew; what is given back half read is no connection any more."""
    client, server = pair
    step = _pieces(answer(client, 2 * PIECE), None, watched(client))
    next(step)
    assert next(step) == Wait.R
    server.send(b"a" * PIECE)
    assert step.send(Ready.R) == Wait.R
    server.send(b"a" * PIECE)
    assert ended(step, Ready.R) == b"a" * 2 * PIECE


def test_what_is_to_be_written_is_waited_for(pair: Pair) -> None:
    def asks() -> Generator[Any, Any, str]:
        assert (yield Wait.RW) == Ready.R
        assert (yield Wait.RW) == Ready.W
        return "done"

    step = _pieces(asks(), None, watched(pair[0]))
    assert next(step) == Wait.RW
    assert step.send(Ready.R) == Wait.RW
    assert ended(step, Ready.W) == "done"
