"""Runs of a handler inside the transaction that also remembers its message: claim, effects, outbox rows, commit; then settle."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import uuid
from collections.abc import Sequence
from typing import Any, cast

from atleastonce.bound import Bound
from atleastonce.context import InboxContext
from atleastonce.contract import Code, Delivery, Fault
from atleastonce.engine.decision import DONE, Decision, again
from atleastonce.engine.threads import on_a_thread
from atleastonce.errors import ConfigurationError, Control, TransactionEnded
from atleastonce.once.item import DUPLICATE, Item, Items
from atleastonce.patterns.failure import causes, ensure_failure
from atleastonce.patterns.hops import one_line, words
from atleastonce.patterns.once.keys import external_key
from atleastonce.patterns.once.options import Inbox
from atleastonce.patterns.once.outage import Outage
from atleastonce.patterns.once.sessions import (
    UNDONE,
    NoAnswer,
    Transactions,
    driver_of,
    ensure_open,
    is_drivers,
    is_same,
    is_spoilt,
    raised_after,
    unsuspended,
    was_closed,
)
from atleastonce.stores.contract import TransactionalStore
from atleastonce.stores.outbox import OutboxStore
from atleastonce.stores.records import Entry

log = logging.getLogger("atleastonce")

# What another transaction was in the way of begins again after up to this long: longer than most transactions take.
_CONFLICT_SECONDS = 0.2

Decisions = dict[Delivery, Decision]


class _Stage(enum.Enum):
    """How far a transaction has come."""

    CLAIM = "claim"
    HANDLER = "handler"
    COMMIT = "commit"


class _Run:
    """One transaction.

    Attributes:
        stage: how far it has come.
        driver: its connection.
        entries: what the claim said.
        held: of a handler that raised, whether the transaction was still the one it was given; None: the connection does not say.
        sure: ``held`` is the handler's doing, and not the database's.
    """

    def __init__(self) -> None:
        self.stage = _Stage.CLAIM
        self.driver: Any = None
        self.entries: list[Entry] = []
        self.held: bool | None = True
        self.sure = False


class _Looked(Exception):
    """Ends a transaction that only looked."""


class _Undo(Exception):
    """These messages failed by the handler's own account; the others are to run without them."""

    def __init__(self, failures: dict[Delivery, Exception]) -> None:
        self.failures = failures


class InboxBound(Bound):
    """A consumer with an `Inbox`, on one broker."""

    def __init__(self, *args: Any, inbox: Inbox, scope: str, outage: Outage, **named: Any) -> None:
        super().__init__(*args, **named)
        binding = self.consumer.binding
        self._store = cast(TransactionalStore, inbox.store)
        self._transactions = Transactions(inbox, binding.name, blocking=not binding.is_async)
        self._items = Items(self, inbox, decode=True)
        self._scope = scope
        self._ttl = inbox.remembered
        self._outage = outage

    async def ensure_session(self) -> None:
        """Return if the user's session, where there is one, writes where the store's tables are; or if it cannot be asked now.

        Raises:
            ConfigurationError: it is on another database, or over a driver that no store speaks to.
        """
        if self._transactions.borrowed:
            await (self._try() if self.consumer.binding.is_async else on_a_thread(lambda: unsuspended(self._try())))

    async def _try(self) -> None:
        try:
            async with self._transactions.begin() as tx:
                driver = await driver_of(tx)
                await self._transactions.answered(
                    self._store.claim_in(driver, self._scope, [uuid.uuid4().hex], [b""], ttl=self._ttl)
                )
                raise _Looked
        except _Looked:
            return
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a database that is away or busy is waited for when messages come
            fault = self._store.classify(error)
            if fault.code is Code.NOT_FOUND:
                raise ConfigurationError(
                    f"{self.consumer.binding.name}: its inbox's session is on a database without the tables of {self._store!r} "
                    f"({one_line(fault.detail)}); give it a session on that one's database"
                ) from None

    async def process(self, delivery: Delivery) -> Decision:
        return (await self._process([delivery]))[0]

    def process_sync(self, delivery: Delivery) -> Decision:
        return unsuspended(self._process([delivery]))[0]

    async def process_batch(self, batch: Sequence[Delivery]) -> Sequence[Decision]:
        if self.consumer.binding.is_async:
            return await self._process(batch)
        return cast(Sequence[Decision], await on_a_thread(lambda: unsuspended(self._process(batch))))

    async def _process(self, batch: Sequence[Delivery]) -> list[Decision]:
        if self._outage.active:
            return [self._outage.hold(delivery) for delivery in batch]
        decisions: Decisions = {}
        items: list[Item] = []
        for delivery in batch:
            made = self._items.make(delivery)
            if isinstance(made, Decision):
                decisions[delivery] = made
            else:
                items.append(made)
        if items:
            await self._decide(items, decisions)
        return [decisions[delivery] for delivery in batch]

    # ------------------------------------------------------------------------------------------------- one transaction

    async def _decide(self, items: list[Item], decisions: Decisions) -> None:
        """Run ``items`` in one transaction; where that fails, each in one of its own. A decision for each."""
        run = _Run()
        try:
            with self._outage.using():
                async with self._transactions.begin() as tx:
                    run.driver = await driver_of(tx)
                    run.entries = await self._claim(items, run.driver)
                    new = [item for item, entry in zip(items, run.entries, strict=True) if entry is Entry.NEW]
                    if new:
                        run.stage = _Stage.HANDLER
                        await self._run(new, tx, run)
                    run.stage = _Stage.COMMIT
        except BaseException as error:  # noqa: BLE001 - whatever ended it, each message gets its decision
            ended = await self._ended(items, run, error)
            if ended is not None:
                log.error(
                    "%s: to the dead letters, since nobody knows what is in the database: %s",
                    items[0].delivery.source,
                    ended,
                )
                for item, entry in zip(items, run.entries, strict=True):
                    condemned = entry is Entry.NEW
                    decisions[item.delivery] = (
                        self.condemned(item.delivery, ended, "handler") if condemned else self._committed(item, entry)
                    )
                return
            ensure_failure(error, awaited=True)
            if isinstance(error, _Undo):
                await self._without(items, error.failures, decisions)
            else:
                await self._undone(items, run.stage, error, run.driver, decisions)
        else:
            for item, entry in zip(items, run.entries, strict=True):
                decisions[item.delivery] = self._committed(item, entry)

    async def _claim(self, items: list[Item], driver: Any) -> list[Entry]:
        keys, prints = [item.key for item in items], [item.print for item in items]
        claim = self._store.claim_in(driver, self._scope, keys, prints, ttl=self._ttl)
        return await self._transactions.answered(claim)

    def _committed(self, item: Item, entry: Entry) -> Decision:
        if entry is Entry.NEW:
            return DONE
        if entry is Entry.SEEN:
            return DUPLICATE
        return self._items.mismatch(item)

    async def _run(self, items: list[Item], tx: Any, run: _Run) -> None:
        """The handler, once, for ``items``, and the rows of what it published."""
        contexts = [
            InboxContext(item.delivery, self._compose, self._history, tx, external_key(self._scope, item.key))
            for item in items
        ]
        try:
            results = await self._call(items, contexts)
            ensure_open(tx, run.driver)
        except (
            TransactionEnded,
            GeneratorExit,
        ):  # the latter: thrown away with its loop, and nothing can be awaited any more
            raise
        except BaseException:
            await self._ask(tx, run)
            raise
        if not (await is_same(tx, run.driver) and await self._transactions.answered(self._store.holds_in(run.driver))):
            raise TransactionEnded(UNDONE)
        if failures := {
            item.delivery: result for item, result in zip(items, results, strict=True) if isinstance(result, Exception)
        }:
            raise _Undo(failures)
        if outputs := [output for context in contexts for output in context.outputs]:
            if not isinstance(self._store, OutboxStore):
                raise ConfigurationError(
                    f"ctx.publish: {self._store!r} has no outbox for what an inbox's handler publishes"
                )
            await self._transactions.answered(self._store.outbox_append(run.driver, outputs))

    async def _call(self, items: list[Item], contexts: list[InboxContext]) -> Sequence[Any]:
        binding, batching = self.consumer.binding, self.consumer.batching is not None
        extra: dict[str, Any] = {}
        if binding.context is not None:
            extra[binding.context] = contexts if batching else contexts[0]
        result = binding.call([item.payload for item in items] if batching else items[0].payload, **extra)
        if binding.is_async:
            result = await result
        elif result is not None:
            self._check_done(result)
        if not batching or result is None:
            return [None] * len(items)
        if isinstance(result, list | tuple) and len(result) == len(items):
            return result
        wrong = TypeError(f"{binding.name} must return None or one result per message, {len(items)} here")
        raise _Undo(dict.fromkeys((item.delivery for item in items), wrong))

    # ------------------------------------------------------------------------------------------------ when it is undone

    async def _ask(self, tx: Any, run: _Run) -> None:
        """Whether the handler, which raised, has left its transaction as it was."""
        try:
            run.sure = was_closed(tx, run.driver)
            run.held = await is_same(tx, run.driver) and await self._transactions.answered(
                self._store.holds_in(run.driver, failed=True)
            )
        except Exception:  # noqa: BLE001 - a lost connection, or a session that refuses everything after an error
            run.held = None

    async def _ended(self, items: list[Item], run: _Run, error: BaseException) -> TransactionEnded | None:
        """Why the messages of ``run`` must not be tried again: their rows may be committed, and the next run would find them."""
        if isinstance(error, TransactionEnded):
            return error
        if run.stage is not _Stage.HANDLER or run.held:
            return None
        chain = list(causes(error))
        ended = raised_after(self.consumer.binding.name, one_line(words(error)))
        if run.held is False and (run.sure or not any(is_drivers(cause, run.driver) for cause in chain)):
            return ended
        # Now it may have been the database that ended it, or the session, which undoes all when a flush fails.
        if any(isinstance(cause, asyncio.CancelledError) for cause in chain):
            return None
        fault = self._trouble(run.stage, error, run.driver)
        if run.held is None and fault is not None and fault.code is not Code.CONFLICT:
            return None
        new = [item for item, entry in zip(items, run.entries, strict=True) if entry is Entry.NEW]
        try:
            recorded = await self._are_recorded(new)
        except Exception:  # noqa: BLE001 - the store went away meanwhile
            recorded = run.held is False
        return ended if recorded else None

    async def _are_recorded(self, items: list[Item]) -> bool:
        entries: list[Entry] = []
        try:
            async with self._transactions.begin() as tx:
                entries = await self._claim(items, await driver_of(tx))
                raise _Looked
        except _Looked:
            return any(entry is not Entry.NEW for entry in entries)

    async def _without(self, items: list[Item], failures: dict[Delivery, Exception], decisions: Decisions) -> None:
        for delivery, error in failures.items():
            decisions[delivery] = self.failed(delivery, error)
        if rest := [item for item in items if item.delivery not in failures]:
            await self._decide(rest, decisions)

    async def _undone(
        self, items: list[Item], stage: _Stage, error: BaseException, driver: Any, decisions: Decisions
    ) -> None:
        fault = self._trouble(stage, error, driver)
        if fault is not None and fault.code is not Code.CONFLICT:
            # At the commit nobody knows how it ended: the row says so the next time.
            self._outage.begin(fault)
            for item in items:
                decisions[item.delivery] = self._outage.hold(item.delivery)
        elif len(items) > 1:
            name = self.consumer.binding.name
            log.warning(
                "%s failed for a batch of %d (%s); running them one by one", name, len(items), one_line(words(error))
            )
            for item in items:
                await self._decide([item], decisions)
        elif fault is not None:
            wait = random.uniform(0.01, _CONFLICT_SECONDS)
            decisions[items[0].delivery] = again(items[0].delivery, wait, "conflicts")
        else:
            decisions[items[0].delivery] = self.failed(items[0].delivery, error)

    def _trouble(self, stage: _Stage, error: BaseException, driver: Any) -> Fault | None:
        """The store's fault behind ``error``; None if it is the handler's own."""
        chain = list(causes(error))
        if any(isinstance(cause, Control | TransactionEnded) for cause in chain):
            return None
        if stage is _Stage.CLAIM:
            found = [self._store.classify(cause) for cause in chain]
            return next((fault for fault in found if fault.code is not Code.INTERNAL), found[0])
        for cause in chain:
            if isinstance(cause, NoAnswer):
                return self._store.classify(cause)
            # A connection's own error, without the driver's name: at the commit nobody but the database is spoken to.
            raw = stage is _Stage.COMMIT and isinstance(cause, OSError)
            if driver is not None and (raw or is_drivers(cause, driver)):
                fault = self._store.classify(cause)
                if fault.retryable and (stage is _Stage.COMMIT or is_spoilt(driver)):
                    return fault
        return None
