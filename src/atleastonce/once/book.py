"""The rows of an inbox: written in a transaction, looked for in another, tried before anything is read."""

from __future__ import annotations

import uuid
from typing import Any

from atleastonce.contract import Code
from atleastonce.engine.threads import on_a_thread
from atleastonce.errors import ConfigurationError
from atleastonce.once.item import Item
from atleastonce.once.run import Looked
from atleastonce.patterns.hops import one_line
from atleastonce.patterns.once.sessions import Transactions, driver_of, ensure_begun, unsuspended
from atleastonce.stores.contract import TransactionalStore
from atleastonce.stores.records import Entry


class Book:
    """What one handler's inbox has written down.

    Args:
        store: whose tables.
        transactions: in which they are written.
        scope: of the handler.
        ttl: seconds for which a row counts.

    Attributes:
        ttl: as given; of the rows that are written from now on.
    """

    def __init__(self, store: TransactionalStore, transactions: Transactions, scope: str, ttl: float) -> None:
        self._store = store
        self._transactions = transactions
        self._scope = scope
        self.ttl = ttl

    async def claim(self, items: list[Item], driver: Any) -> list[Entry]:
        """Write down ``items`` in the transaction of ``driver``; what was known of each."""
        return await self._claim(driver, [item.key for item in items], [item.print for item in items])

    async def _claim(self, driver: Any, keys: list[str], prints: list[bytes]) -> list[Entry]:
        ensure_begun(driver)
        claim = self._store.claim_in(driver, self._scope, keys, prints, ttl=self.ttl)
        return await self._transactions.answered(claim)

    async def are_recorded(self, items: list[Item]) -> bool:
        """Whether any of ``items`` is written down, committed, by whomever."""
        entries: list[Entry] = []
        try:
            async with self._transactions.begin() as tx:
                entries = await self.claim(items, await driver_of(tx))
                raise Looked
        except Looked:
            return any(entry is not Entry.NEW for entry in entries)

    async def ensure_session(self, handler: str, *, on_loop: bool) -> None:
        """Return if the user's session, where there is one, writes where the store's tables are; or if it cannot be asked now.

        Raises:
            ConfigurationError: it is on another database, over a driver that no store speaks to, or commits each statement by
                itself.
        """
        if self._transactions.borrowed:
            await (self._try(handler) if on_loop else on_a_thread(lambda: unsuspended(self._try(handler))))

    async def _try(self, handler: str) -> None:
        try:
            async with self._transactions.begin() as tx:
                await self._claim(await driver_of(tx), [uuid.uuid4().hex], [b""])
                raise Looked
        except Looked:
            return
        except ConfigurationError as error:
            raise ConfigurationError(f"{handler}: its inbox's session cannot be used: {error}") from None
        except Exception as error:  # noqa: BLE001 - a database that is away or busy is waited for when messages come
            fault = self._store.classify(error)
            if fault.code is Code.NOT_FOUND:
                raise ConfigurationError(
                    f"{handler}: its inbox's session is on a database without the tables of {self._store!r} "
                    f"({one_line(fault.detail)}); give it a session on that one's database"
                ) from None
