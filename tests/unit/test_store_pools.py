"""Connections of stores: given out, put back, thrown away."""

from __future__ import annotations

import asyncio

import pytest

from atleastonce.stores.pools import BlockingPool, Pool


class Connection:
    def __init__(self) -> None:
        self.idle, self.broken, self.dropped = True, False, False
        self.mark = ""
        self.stubborn = False  # cannot be restored


def restored(connection: Connection) -> None:
    if connection.stubborn:
        raise OSError("nobody answers")
    connection.mark = ""


class Threads(BlockingPool[Connection]):
    def __init__(self, size: int, trusted: float = 60.0) -> None:
        super().__init__(size, trusted)
        self.made: list[Connection] = []

    def make(self) -> Connection:
        self.made.append(Connection())
        return self.made[-1]

    def is_idle(self, connection: Connection) -> bool:
        return connection.idle and not connection.broken and not connection.dropped

    def is_broken(self, connection: Connection) -> bool:
        return connection.broken

    def restore(self, connection: Connection) -> None:
        restored(connection)

    def drop(self, connection: Connection) -> None:
        connection.dropped = True
        raise OSError("nobody there")


class Loop(Pool[Connection]):
    def __init__(self, size: int, trusted: float = 60.0) -> None:
        super().__init__(size, trusted)
        self.made: list[Connection] = []

    async def make(self) -> Connection:
        self.made.append(Connection())
        return self.made[-1]

    def is_idle(self, connection: Connection) -> bool:
        return connection.idle and not connection.broken and not connection.dropped

    def is_broken(self, connection: Connection) -> bool:
        return connection.broken

    async def restore(self, connection: Connection) -> None:
        restored(connection)

    async def drop(self, connection: Connection) -> None:
        connection.dropped = True
        raise OSError("nobody there")


async def test_one_is_used_again_also_after_a_handlers_error() -> None:
    pool, threads = Loop(1), Threads(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="handler"):
            async with pool.connection():
                raise ValueError("handler")
        with pytest.raises(ValueError, match="handler"), threads.connection():
            raise ValueError("handler")
    assert len(pool.made) == len(threads.made) == 1


async def test_what_comes_back_in_a_transaction_is_dropped_alone() -> None:
    pool, threads = Loop(2), Threads(2)
    async with pool.connection() as first, pool.connection() as second:
        first.idle = False
    with threads.connection() as third, threads.connection() as fourth:
        third.idle = False
    assert (first.dropped, second.dropped) == (third.dropped, fourth.dropped) == (True, False)


async def test_a_broken_one_takes_the_idle_ones_along() -> None:
    pool, threads = Loop(3), Threads(3)
    async with pool.connection() as first:
        async with pool.connection() as idle:
            pass
        first.broken = True
    with threads.connection() as second:
        with threads.connection() as other:
            pass
        second.broken = True
    assert first.dropped
    assert idle.dropped
    assert second.dropped
    assert other.dropped


async def test_what_was_unused_for_too_long_is_not_trusted() -> None:
    pool, threads = Loop(1, trusted=0.0), Threads(1, trusted=0.0)
    for _ in range(2):
        async with pool.connection():
            pass
        with threads.connection():
            pass
    assert [each.dropped for each in pool.made] == [each.dropped for each in threads.made] == [True, False]


async def test_no_more_than_its_size_and_none_kept_after_close() -> None:
    pool = Loop(1)
    async with pool.connection() as held:
        waiting = asyncio.create_task(pool.connection().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
        await pool.close()
    assert held.dropped
    assert (await waiting) is not held


async def test_what_was_lent_is_restored_or_given_to_nobody() -> None:
    pool, threads = Loop(1), Threads(1)
    for stubborn in (False, True, False):
        async with pool.lent() as first:
            assert not first.mark
            first.mark, first.stubborn = "somebody's", stubborn
        with threads.lent() as second:
            assert not second.mark
            second.mark, second.stubborn = "somebody's", stubborn
    assert len(pool.made) == len(threads.made) == 2
    assert [each.mark for each in (pool.made[1], threads.made[1])] == ["", ""]
