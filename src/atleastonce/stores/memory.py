"""Leases in this process's memory: for tests and for single processes that may forget when they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from atleastonce.contract.outcomes import Code, Fault, Scope
from atleastonce.stores import protocol
from atleastonce.stores.contract import LeaseStore
from atleastonce.stores.protocol import SECOND, Record
from atleastonce.stores.records import Claim, ClaimRequest, Completion, Count, Lease, Stats

_SWEEP = 4096  # grants between two looks for what has expired: nothing else bounds the memory of who never purges


class MemoryStore(LeaseStore):
    """Leases in a dict. Atomic because it never awaits; gone with the process.

    Args:
        clock: seconds; only differences count, and it must never go back. Give a fake one to tests.
    """

    scheme: ClassVar[str] = "memory"

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        super().__init__()
        begin = time.time() - time.monotonic()
        self._clock = clock or (lambda: begin + time.monotonic())
        self._records: dict[tuple[str, str], Record] = {}
        self._until_sweep = _SWEEP

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._records)} records)"

    async def init(self) -> None:
        """Nothing to create."""

    async def _connect(self) -> None:
        pass

    async def _disconnect(self) -> None:
        pass

    def _now(self) -> int:
        return int(self._clock() * SECOND)

    async def _claim(self, requests: Sequence[ClaimRequest]) -> Sequence[Claim]:
        now, records, answers = self._now(), self._records, []
        for request in requests:
            key = (request.scope, request.id)
            answer, record = protocol.claim(records.get(key), request, now)
            if record is not None:
                records[key] = record
                self._until_sweep -= 1
            answers.append(answer)
        if self._until_sweep <= 0:
            self._sweep(now, len(records))
            self._until_sweep = max(_SWEEP, len(records) // 2)  # so that a sweep costs each grant a constant
        return answers

    async def _extend(self, leases: Sequence[Lease], seconds: float) -> Sequence[bool]:
        now, get = self._now(), self._records.get
        return [protocol.extend(get((each.scope, each.id)), each.token, seconds, now) for each in leases]

    async def _complete(self, completions: Sequence[Completion]) -> Sequence[bool]:
        now, get = self._now(), self._records.get
        return [
            protocol.complete(get((each.lease.scope, each.lease.id)), each.lease.token, each.result, each.ttl, now)
            for each in completions
        ]

    async def _release(self, leases: Sequence[Lease]) -> Sequence[bool]:
        now, get = self._now(), self._records.get
        return [protocol.release(get((each.scope, each.id)), each.token, now) for each in leases]

    async def purge(self, limit: int = 1000) -> int:
        self._check_open()
        return self._sweep(self._now(), limit)

    def _sweep(self, now: int, limit: int) -> int:
        expired = [key for key, record in self._records.items() if record.expires <= now][:limit]
        for key in expired:
            del self._records[key]
        return len(expired)

    async def stats(self) -> Stats:
        self._check_open()
        if not self._records:
            return Stats(Count(0))
        first = min(self._records.values(), key=lambda record: record.expires)
        return Stats(Count(len(self._records), (self._now() - first.created) / SECOND))

    def classify(self, error: BaseException) -> Fault:
        return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {error}")
