"""Cases for a store whose server dies in mid-run."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

import pytest

from atleastonce.contract import Status as Ended
from atleastonce.stores import ClaimRequest, Completion, Status, open_store
from atleastonce.testing.stores.bench import ask, fresh_scope, until


class Server(Protocol):
    @property
    def url(self) -> str: ...
    async def kill(self) -> None: ...
    async def start(self) -> None: ...


class KilledStoreSuite:
    """Override ``server`` with a private one that keeps over ``kill -9`` what it confirmed, and ``options``."""

    pytestmark = pytest.mark.asyncio
    options: ClassVar[dict[str, Any]] = {}

    def server(self) -> AbstractAsyncContextManager[Server]:
        raise NotImplementedError("give the suite's subclass a method `server` that starts a private one")

    async def test_killed_and_restarted_in_mid_run(self) -> None:
        """What was confirmed is there; what was not is unknown, and found again by its token; nothing has two holders."""
        async with self.server() as server, open_store(server.url, self.options) as store:
            scope = fresh_scope()
            (early,) = await store.claim([ask(scope, "early", lease=120)])
            assert early.lease is not None
            assert (await store.complete([Completion(early.lease, b"kept")]))[0].ok
            requests: list[ClaimRequest] = []
            unknown: list[ClaimRequest] = []
            granted: dict[str, int] = {}
            stop = asyncio.Event()

            async def claim_on() -> None:
                while not stop.is_set():
                    some = [ask(scope, f"m-{len(requests) + number}", lease=120) for number in range(5)]
                    requests.extend(some)
                    for request, claim in zip(some, await store.claim(some), strict=True):
                        if claim.status is Status.UNKNOWN:
                            assert claim.fault is not None
                            assert claim.fault.retryable, claim.fault
                            unknown.append(request)
                        else:
                            assert claim.status is Status.NEW
                            granted[request.id] = claim.fence
                    await asyncio.sleep(0.005)

            task = asyncio.create_task(claim_on())
            await until(_when(lambda: len(granted) > 20))
            await server.kill()
            await until(_when(lambda: len(unknown) > 5))
            (end,) = await store.release([early.lease])
            assert end.status is Ended.UNKNOWN
            await server.start()
            reached = len(granted)
            await until(_when(lambda: len(granted) > reached + 20))
            stop.set()
            await task
            again = await store.claim(unknown)
            assert {each.status for each in again} == {Status.NEW}, "the same tokens: whether granted before or now"
            assert {each.attempts for each in again} == {1}
            others = await store.claim([ask(scope, each.id) for each in requests])
            assert {each.status for each in others} == {Status.BUSY}
            (done,) = await store.claim([ask(scope, "early")])
            assert done.result == b"kept"


def _when(condition: Any) -> Any:
    async def look() -> bool:
        return bool(condition())

    return look
