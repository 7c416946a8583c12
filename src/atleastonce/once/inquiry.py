"""Why a transaction of an inbox was undone: by its store, by the handler's failure, or by a handler that ended it itself."""

from __future__ import annotations

import asyncio
from typing import Any

from atleastonce.contract import Code, Fault
from atleastonce.errors import Control, InvalidMessage, TransactionEnded
from atleastonce.once.book import Book
from atleastonce.once.item import Item
from atleastonce.once.run import Run, Stage
from atleastonce.patterns.failure import causes
from atleastonce.patterns.hops import one_line, words
from atleastonce.patterns.once.sessions import (
    NoAnswer,
    Transactions,
    is_drivers,
    is_same,
    is_spoilt,
    raised_after,
    tells,
    was_closed,
)
from atleastonce.stores.contract import TransactionalStore
from atleastonce.stores.records import Entry


class Inquiry:
    """Of one handler's transactions.

    Args:
        store: classifies what went wrong.
        transactions: of the handler.
        book: where its messages are written down.
        handler: for errors.
    """

    def __init__(self, store: TransactionalStore, transactions: Transactions, book: Book, handler: str) -> None:
        self._store = store
        self._transactions = transactions
        self._book = book
        self._handler = handler

    async def holds(self, tx: Any, driver: Any, *, failed: bool = False) -> bool:
        """Whether ``tx`` is still the transaction that the handler was given."""
        return await is_same(tx, driver) and await self._transactions.answered(
            self._store.holds_in(driver, failed=failed)
        )

    async def ask(self, tx: Any, run: Run) -> None:
        """Write down in ``run`` whether the handler, which raised, has left its transaction as it was."""
        try:
            run.spoilt = is_spoilt(run.driver)
            run.sure = was_closed(tx, run.driver)
            run.held = await self.holds(tx, run.driver, failed=True)
        except Exception:  # noqa: BLE001 - a lost connection, or a session that refuses everything after an error
            run.held = None
        run.spoilt = run.spoilt or not run.held

    async def ended(self, items: list[Item], run: Run, error: BaseException) -> TransactionEnded | None:
        """Why the messages of ``run`` must not be tried again: their rows may be committed, and the next run would find them."""
        if isinstance(error, TransactionEnded):
            return error
        if run.stage is not Stage.HANDLER or run.held:
            return None
        chain = list(causes(error))
        ended = raised_after(self._handler, one_line(words(error)))
        if run.held is False and (run.sure or not any(is_drivers(cause, run.driver) for cause in chain)):
            return ended
        # Now it may have been the database that ended it, or the session, which undoes all when a flush fails.
        if any(isinstance(cause, asyncio.CancelledError) for cause in chain):
            return None
        fault = self.trouble(run, error)
        if run.held is None and fault is not None and fault.code is not Code.CONFLICT:
            return None
        new = [item for item, entry in zip(items, run.entries, strict=True) if entry is Entry.NEW]
        try:
            recorded = await self._book.are_recorded(new)
        except Exception:  # noqa: BLE001 - the store went away meanwhile
            recorded = run.held is False
        return ended if recorded else None

    def trouble(self, run: Run, error: BaseException) -> Fault | None:
        """The store's fault behind ``error``; None if it is the handler's own."""
        chain = list(causes(error))
        if any(isinstance(cause, Control | TransactionEnded) for cause in chain):
            return None
        if run.stage is Stage.CLAIM:
            if isinstance(error, InvalidMessage):  # a key that this database cannot hold
                return None
            found = [self._store.classify(cause) for cause in chain]
            return next((fault for fault in found if fault.code is not Code.INTERNAL), found[0])
        after = run.stage is not Stage.HANDLER
        for cause in chain:
            if isinstance(cause, NoAnswer):
                return self._store.classify(cause)
            # A connection's own error, without the driver's name: after the handler nobody but the database is spoken to.
            raw = after and isinstance(cause, OSError)
            if run.driver is None or not (raw or is_drivers(cause, run.driver)):
                continue
            fault = self._store.classify(cause)
            if fault.retryable and (raw or self._is_stores(run, fault, cause)):
                return fault
        return None

    def _is_stores(self, run: Run, fault: Fault, error: BaseException) -> bool:
        """Whether ``error`` of the store's driver is its fault. The handler may speak to another database over the same driver, and
        what its own statements do too slowly, or wait for too long, would do so again for ever."""
        if fault.code is Code.TIMEOUT:
            return False
        if run.stage is not Stage.HANDLER:
            return True
        if fault.code is Code.CONFLICT:
            return self._store.lost_a_race(error)
        # Of those that do not tell, a full disk undoes the statement alone.
        return run.spoilt or (fault.code is Code.OVERLOADED and not tells(run.driver))
