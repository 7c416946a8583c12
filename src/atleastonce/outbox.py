"""`Outbox`: messages that leave if, and only if, a database transaction commits."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from atleastonce.channels import Channel
from atleastonce.compose import compose_many, compose_row
from atleastonce.contract import Outgoing
from atleastonce.durations import Duration
from atleastonce.errors import ConfigurationError
from atleastonce.message import HeaderValue
from atleastonce.patterns.once.sessions import driver_of, ensure_begun, ensure_blocking, unsuspended
from atleastonce.patterns.outbox import RelayOptions
from atleastonce.stores.outbox import OutboxStore


class Outbox:
    """Publishes by writing rows in a transaction; a relay sends them once it has committed.

    The relay runs in a `Service` that was given this outbox (``Service(outbox=outbox)``), or as ``atleastonce outbox relay``. All
    rows of one outbox go to the relay's broker: for two brokers give two stores with a ``prefix`` each.

    Args:
        store: `PostgresStore`, `MySQLStore` or `SQLiteStore`; the database of the transactions.
        relay: how a service's relay works.

    Raises:
        ConfigurationError: a store that cannot be an outbox.
    """

    def __init__(self, store: OutboxStore, *, relay: RelayOptions | None = None) -> None:
        if not isinstance(_given(store), OutboxStore):
            raise ConfigurationError(
                f"Outbox({store!r}): this store is no database in which messages could be rows; use PostgresStore, MySQLStore "
                "or SQLiteStore"
            )
        self.store = store
        self.relay = relay or RelayOptions()

    # ----------------------------------------------------------------------------------------------------- transactions

    async def open(self) -> None:
        """Connect, for `transaction`. Not needed for `publish` in transactions of one's own. Idempotent; raises as the store's."""
        await self.store.open()

    async def close(self) -> None:
        """Disconnect."""
        await self.store.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A transaction on the store's own connection, which is opened if need be: commits at the end of the block, undone by an
        exception. Gives the driver's object: a ``psycopg.AsyncConnection``, a ``sqlite3.Connection``.

        Raises:
            StoreUnavailable, ConfigurationError: as the store's `open` and ``transaction``.
        """
        if not self.store.is_open:
            await self.store.open()
        async with self.store.transaction() as tx:
            yield tx

    @contextlib.contextmanager
    def transaction_sync(self) -> Iterator[Any]:
        """As `transaction`, for threads without a loop. Needs no `open`; the tables must be there."""
        with self.store.transaction_sync() as tx:
            yield tx

    # ---------------------------------------------------------------------------------------------------------- publish

    async def publish(
        self,
        tx: Any,
        channel: Channel[Any],
        payload: Any,
        *,
        key: str | bytes | None = None,
        id: str | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: Duration | None = None,
    ) -> str:
        """Write one message into ``tx``; return its id. It leaves when ``tx`` has committed, and never if it does not.

        Args:
            tx: a transaction that has begun: what `transaction` gave, a SQLAlchemy session or connection, ``django.db.connection``
                inside ``atomic``, a psycopg 3, sqlite3 or aiosqlite connection. It must be in the store's database.
            delay: not to be published before this has passed since now, whatever the broker can. Its order against others of its
                key is then not kept.

        The others are as in `Broker.publish`.

        Raises:
            EncodeError, InvalidMessage, ConfigurationError: nothing was written.
            The driver's own errors.
        """
        item = compose_row(channel, payload, key=key, id=id, headers=headers, delay=delay)
        await self._append(tx, [item])
        return item.message.id

    async def publish_many(
        self,
        tx: Any,
        channel: Channel[Any],
        payloads: Iterable[Any],
        *,
        key: Callable[[Any], str | bytes | None] | None = None,
        id: Callable[[Any], str] | None = None,
        headers: Mapping[str, HeaderValue] | None = None,
    ) -> list[str]:
        """Write a list into ``tx``, in order, in one statement; return the ids.

        Args:
            tx: as in `publish`.
            key, id: from a payload to its key and id.

        Raises as `publish`; nothing was written.
        """
        items = compose_many(channel, payloads, key=key, id=id, headers=headers)
        await self._append(tx, items)
        return [item.message.id for item in items]

    def publish_sync(self, tx: Any, channel: Channel[Any], payload: Any, **options: Any) -> str:
        """`publish` into a transaction that blocks: a SQLAlchemy ``Session``, Django, psycopg's ``Connection``, sqlite3."""
        ensure_blocking(tx)
        return unsuspended(self.publish(tx, channel, payload, **options))

    def publish_many_sync(self, tx: Any, channel: Channel[Any], payloads: Iterable[Any], **options: Any) -> list[str]:
        """`publish_many` into a transaction that blocks."""
        ensure_blocking(tx)
        return unsuspended(self.publish_many(tx, channel, payloads, **options))

    async def _append(self, tx: Any, items: list[Outgoing]) -> None:
        if items:
            driver = await driver_of(tx)
            ensure_begun(driver)
            await self.store.outbox_append(driver, items)

    def __repr__(self) -> str:
        return f"Outbox({self.store!r})"


def _given(value: object) -> object:
    """What was really given, whatever its annotation says."""
    return value
