"""Transactions of an inbox: the store's own or the user's session, blocking or not, and what their driver says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from inspect import isawaitable, iscoroutinefunction
from types import TracebackType
from typing import Any, TypeVar

from atleastonce.errors import ConfigurationError, StoreUnavailable, TransactionEnded
from atleastonce.patterns.once.options import Inbox
from atleastonce.stores.telling import IN_NO_TRANSACTION

T = TypeVar("T")


class NoAnswer(StoreUnavailable):
    """A statement of ours, not of the handler, was not answered in time. At a commit: it may have happened."""


class Transactions:
    """Begins the transactions of one handler.

    Args:
        inbox: whose store or session.
        handler: for errors.
        blocking: for a ``def`` handler, which runs on a thread without a loop.

    Raises:
        ConfigurationError: the session cannot be used by this kind of handler.
    """

    def __init__(self, inbox: Inbox, handler: str, *, blocking: bool) -> None:
        self._inbox = inbox
        self._blocking = blocking
        # A thread that waits for its driver cannot be called back: there the connection's own limits have to do.
        self._patience = None if blocking else getattr(inbox.store, "patience", None)
        if inbox.session is not None:
            made = inbox.session()
            if not hasattr(made, "__enter__" if blocking else "__aenter__"):
                kind, other = ("def", "with") if blocking else ("async def", "async with")
                raise ConfigurationError(
                    f"{handler}: its inbox's session gives a {type(made).__name__}, and {kind} handlers need one for "
                    f'"{other}"'
                )

    @property
    def borrowed(self) -> bool:
        """Whether they are the user's own sessions."""
        return self._inbox.session is not None

    def begin(self) -> AbstractAsyncContextManager[Any]:
        """One transaction; commits at the end of the block, undone by an exception."""
        session, store = self._inbox.session, self._inbox.store
        if session is not None:
            made: Any = session()
        else:
            made = store.transaction_sync() if self._blocking else store.transaction()  # type: ignore[attr-defined]
        return _Unsuspended(made) if self._blocking else _Answered(made, self)

    async def answered(self, work: Awaitable[T]) -> T:
        """What ``work`` gives: a statement of ours.

        Raises:
            NoAnswer: the server is silent.
        """
        if self._patience is None:
            return await work
        limit = asyncio.timeout(self._patience)
        try:
            async with limit:
                return await work
        except Exception:  # aiomysql makes an error of its own of a cancellation
            if not limit.expired():
                raise
            raise NoAnswer(f"the store did not answer within {self._patience:g} s") from None


class _Answered(AbstractAsyncContextManager[Any]):
    """A transaction that ends in time, or with `NoAnswer`. It begins when there is a connection for it: that may take as long as
    other handlers do."""

    def __init__(self, made: AbstractAsyncContextManager[Any], within: Transactions) -> None:
        self._made, self._within = made, within

    async def __aenter__(self) -> Any:
        return await self._made.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._within.answered(self._made.__aexit__(kind, error, trace))


class _Unsuspended(AbstractAsyncContextManager[Any]):
    """A blocking context manager where an awaited one is written, so that there is one code for both."""

    def __init__(self, blocking: AbstractContextManager[Any]) -> None:
        self._blocking = blocking

    async def __aenter__(self) -> Any:
        return self._blocking.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._blocking.__exit__(kind, error, trace)


def unsuspended(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which never has to wait on a loop: everything that it awaits blocks instead."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise ConfigurationError(_AWAITED)


def ensure_blocking(tx: Any) -> None:
    """Return unless ``tx`` plainly has to be awaited: what was begun with it and not awaited would spoil its connection.

    Raises:
        ConfigurationError: it has.
    """
    if iscoroutinefunction(getattr(tx, "execute", None)) or _root(tx) == "aiosqlite":
        raise ConfigurationError(_AWAITED)


_AWAITED = "a transaction that is awaited was given where nothing can be awaited; give a blocking session or store"


async def driver_of(tx: Any) -> Any:
    """The driver's connection inside ``tx``: a SQLAlchemy session or connection, a Django connection, or the driver's own."""
    if any(kind.__module__.startswith("sqlalchemy.") for kind in type(tx).__mro__):
        connection = tx.connection() if callable(getattr(tx, "connection", None)) else tx
        if isawaitable(connection):
            connection = await connection
        raw = getattr(connection, "get_raw_connection", None)
        pooled = await raw() if raw is not None else connection.connection
        tx = pooled.driver_connection
    elif hasattr(tx, "ensure_connection"):
        tx.ensure_connection()
        tx = tx.connection
    if tx is None or _root(tx) == "asyncpg":
        raise ConfigurationError(
            f"an inbox's session gave {'nothing' if tx is None else 'an asyncpg connection'}; it must give a transaction over "
            "psycopg 3 (postgresql+psycopg://), a driver of MySQL, or sqlite3"
        )
    return tx


def ensure_open(tx: Any, driver: Any) -> None:
    """Return if ``tx`` is still as its handler was given it, so that a commit is one.

    Raises:
        TransactionEnded: the handler has ended it.
        RuntimeError: one of its statements has failed, so that a commit would undo everything without a word.
    """
    if _is_over(tx, driver):
        raise TransactionEnded(_ENDED)
    if _state(driver) == "INERROR" or getattr(tx, "needs_rollback", False):
        raise RuntimeError(
            "a statement of ctx.tx failed and its error was swallowed; the database has undone the whole transaction. Let the "
            "error out, or use a savepoint"
        )


async def is_same(tx: Any, driver: Any) -> bool:
    """Whether a question put to ``driver`` reaches ``tx``, which was begun over it: a session that has ended its transaction has
    given the connection back, and another one may be using it."""
    lost = getattr(driver, "closed", False) or getattr(driver, "open", True) is False  # it says so itself
    return not _is_over(tx, driver) and bool(lost or await driver_of(tx) is driver)


def was_closed(tx: Any, driver: Any) -> bool:
    """Whether the handler has closed its connection, which psycopg knows from one that was lost, and a `MySQLStore`'s do as well.
    ``async with ctx.tx`` does it, with psycopg after a commit."""
    if tx is not driver:
        return False
    if getattr(driver, "closed_on_purpose", False):
        return True
    try:
        getattr(driver, "in_transaction", None)
    except Exception:  # noqa: BLE001 - SQLite's, which end in no other way
        return True
    return bool(getattr(driver, "closed", False)) and getattr(driver, "broken", None) is False


def _is_over(tx: Any, driver: Any) -> bool:
    if was_closed(tx, driver):
        return True
    for each in (tx, driver):
        inside = getattr(each, "in_transaction", None)
        if inside is not None and not (inside() if callable(inside) else inside):
            return True
    return _state(driver) == "IDLE" or _mysql_in_transaction(driver) is False


def ensure_begun(driver: Any) -> None:
    """Return if what is written through ``driver`` now is part of a transaction, or if only its store can tell (SQLite).

    Raises:
        ConfigurationError: each statement would be committed by itself.
    """
    if _state(driver) is not None:
        alone = _state(driver) == "IDLE" and getattr(driver, "autocommit", False)
    else:
        alone = _mysql_in_transaction(driver) is False and driver.get_autocommit()
    if alone:
        raise ConfigurationError(IN_NO_TRANSACTION)


UNDONE = (
    "ctx.tx is another transaction than the handler was given: it committed or rolled back that one itself (leave that to the "
    "inbox), or the database undid all of it, as a deadlock does, and the error was swallowed (let it out: all is tried again)"
)
_REMEDY = "leave that to the inbox, which commits when the handler returns and rolls back when it raises"
_ENDED = f"the handler committed, rolled back or closed ctx.tx itself; {_REMEDY}"


def raised_after(handler: str, error: str) -> TransactionEnded:
    """What becomes of a message whose ``handler`` ended its transaction and then raised ``error``."""
    return TransactionEnded(
        f"{handler} committed, rolled back or closed ctx.tx itself and then raised {error}; {_REMEDY}"
    )


def is_spoilt(driver: Any) -> bool:
    """Whether the transaction cannot go on, as far as the driver says. Asked before anything is undone."""
    if getattr(driver, "closed", False) or getattr(driver, "broken", False) or getattr(driver, "open", True) is False:
        return True
    return tells(driver) and _state(driver) not in ("INTRANS", "ACTIVE")


def tells(driver: Any) -> bool:
    """Whether ``driver`` says of its transaction that a statement of it has failed."""
    return _state(driver) is not None


def is_drivers(error: BaseException, driver: Any) -> bool:
    """Whether ``error`` was raised by the driver of ``driver``."""
    # Without `object`: a handler's own ConnectionError would be the store's. Nor our own errors, where the connection is our class.
    roots = {kind.__module__.partition(".")[0] for kind in type(driver).__mro__} - {"builtins", "atleastonce"}
    return _root(error) in roots | {_ERRORS_OF[root] for root in roots & _ERRORS_OF.keys()}


# Drivers that raise another one's errors.
_ERRORS_OF = {"aiosqlite": "sqlite3", "aiomysql": "pymysql"}


def _mysql_in_transaction(driver: Any) -> bool | None:
    """What a MySQL server said with its last answer; None where the driver is another one, or does not tell (mysqlclient)."""
    status = getattr(driver, "server_status", None)
    return bool(status & 1) if isinstance(status, int) else None  # SERVER_STATUS_IN_TRANS


def _state(driver: Any) -> str | None:
    """libpq's transaction status; None where the driver is another one."""
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    return getattr(status, "name", None)


def _root(value: Any) -> str:
    return type(value).__module__.partition(".")[0]
