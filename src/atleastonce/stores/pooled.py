"""A store in a database server, spoken to through a pool of connections: how it begins, asks and fails is the same for each."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from atleastonce.errors import AtLeastOnceError, ConfigurationError
from atleastonce.stores.outbox import OutboxStore
from atleastonce.stores.pools import Pool
from atleastonce.stores.telling import as_error, told

C = TypeVar("C")
_T = TypeVar("_T")


class PooledStore(OutboxStore, Generic[C]):
    """What its kinds share. A kind sets in its constructor whether the tables are created at `open`, how many seconds a call may
    take, and its pools: of its own, and of what it lends to handlers, who may keep that for as long as they like and change it."""

    _create: bool
    _timeout: float
    _pool: Pool[C]
    _lent: Pool[C]

    @property
    @abstractmethod
    def _shown(self) -> str:
        """As errors name it: its kind, and its address without secrets."""

    @abstractmethod
    def _ensure_driver(self) -> None:
        """Raises MissingExtra: its client library is not installed."""

    @abstractmethod
    def _make_pool(self, *, lent: bool = False) -> Pool[C]:
        """Of its own, or of what it lends to handlers."""

    @abstractmethod
    async def _make_tables(self, connection: C) -> None:
        """Where they are missing; safe when many do it at once."""

    @abstractmethod
    async def _check_schema(self, connection: C) -> None:
        """Raises ConfigurationError: it is missing, of another version, or not as it was made."""

    @abstractmethod
    def _lacks_table(self, error: Exception) -> bool:
        """Whether a statement failed for want of a table."""

    # ------------------------------------------------------------------------------------------------------- lifecycle

    async def init(self) -> None:
        self._ensure_driver()
        pool = self._make_pool()
        try:
            await self._told(self._run(self._make_tables, pool))
            await self._told(self._run(self._check_schema, pool))
        finally:
            await pool.close()

    async def _connect(self) -> None:
        self._ensure_driver()
        if self._create:
            await self.init()
        self._pool, self._lent = self._make_pool(), self._make_pool(lent=True)
        try:
            await self._told(self._run(self._check_schema))
        except BaseException:
            await self._pool.close()
            raise

    # ---------------------------------------------------------------------------------------------------------- asking

    async def _run(self, work: Callable[[C], Awaitable[_T]], pool: Pool[C] | None = None) -> _T:
        async with asyncio.timeout(self._timeout), (pool or self._pool).connection() as connection:
            return await work(connection)

    async def _told(self, work: Awaitable[_T]) -> _T:
        return await told(work, self.classify, self._shown)

    def _as_error(self, error: Exception) -> AtLeastOnceError:
        return as_error(self.classify(error), self._shown)

    async def _outbox(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """``call``, repeated where that helps, and its errors as an outbox tells them."""
        self._check_open()
        try:
            return await self._persist(call)
        except Exception as error:  # noqa: BLE001 - whatever a driver makes of a failing server
            if self._lacks_table(error):
                text = f"{self._shown}: there are no tables of an outbox yet; call the store's init()"
                raise ConfigurationError(text) from None
            raise self._as_error(error) from None
