"""Runs of a handler inside the transaction that also remembers its message: claim, effects, outbox rows, commit; then settle."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, cast

from atleastonce.bound import Bound
from atleastonce.context import InboxContext
from atleastonce.contract import Code, Delivery, Fault, Scope
from atleastonce.engine.decision import DONE, Decision, again
from atleastonce.engine.threads import on_a_thread
from atleastonce.errors import ConfigurationError, InvalidMessage, TransactionEnded
from atleastonce.once.book import Book
from atleastonce.once.inquiry import Inquiry
from atleastonce.once.item import DUPLICATE, Item, Items
from atleastonce.once.run import Run, Stage, Undo
from atleastonce.patterns.failure import ensure_failure
from atleastonce.patterns.hops import one_line, words
from atleastonce.patterns.once.keys import external_key
from atleastonce.patterns.once.options import Inbox
from atleastonce.patterns.once.outage import Outage
from atleastonce.patterns.once.sessions import UNDONE, NoAnswer, Transactions, driver_of, ensure_open, unsuspended
from atleastonce.stores.contract import TransactionalStore
from atleastonce.stores.outbox import OutboxStore
from atleastonce.stores.records import Entry

log = logging.getLogger("atleastonce")

# What another transaction was in the way of begins again after up to this long: longer than most transactions take.
_CONFLICT_SECONDS = 0.2

Decisions = dict[Delivery, Decision]


class InboxBound(Bound):
    """A consumer with an `Inbox`, on one broker."""

    @property
    def memory(self) -> float:
        """Seconds for which what was handled is remembered."""
        return self._book.ttl

    @memory.setter
    def memory(self, seconds: float) -> None:
        self._book.ttl = seconds

    def __init__(self, *args: Any, inbox: Inbox, scope: str, outage: Outage, **named: Any) -> None:
        super().__init__(*args, **named)
        binding = self.consumer.binding
        self._store = cast(TransactionalStore, inbox.store)
        self._transactions = Transactions(inbox, binding.name, blocking=not binding.is_async)
        self._items = Items(self, inbox, decode=True)
        self._scope = scope
        self._book = Book(self._store, self._transactions, scope, inbox.remembered(0.0))
        self._inquiry = Inquiry(self._store, self._transactions, self._book, binding.name)
        self._outage = outage

    async def ensure_session(self) -> None:
        """See `Book.ensure_session`."""
        binding = self.consumer.binding
        await self._book.ensure_session(binding.name, on_loop=binding.is_async)

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
        """Run ``items`` in one transaction; where that fails, in others. A decision for each."""
        left = items
        while left:
            left = await self._attempt(left, decisions)
        for item in items:
            if decisions[item.delivery].again is None:
                self._outage.ended(item.delivery)

    async def _attempt(self, items: list[Item], decisions: Decisions) -> list[Item]:
        """Run ``items`` in one transaction. Those that have no decision by it: others failed by the handler's own account, and they
        are to run without them."""
        run = Run()
        try:
            with self._outage.using():
                async with self._transactions.begin() as tx:
                    run.driver = await driver_of(tx)
                    try:
                        run.entries = await self._book.claim(items, run.driver)
                    except NoAnswer:
                        run.unanswered = True
                        raise
                    new = [item for item, entry in zip(items, run.entries, strict=True) if entry is Entry.NEW]
                    if new:
                        run.stage = Stage.HANDLER
                        await self._run(new, tx, run)
                    run.stage = Stage.COMMIT
        except BaseException as error:  # noqa: BLE001 - whatever ended it, each message gets its decision
            ended = await self._inquiry.ended(items, run, error)
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
                return []
            ensure_failure(error, awaited=True)
            if isinstance(error, Undo):
                return self._without(items, error.failures, decisions)
            await self._undone(items, run, error, decisions)
        else:
            if run.stage is Stage.COMMIT and Entry.NEW in run.entries:
                self._outage.committed()
            for item, entry in zip(items, run.entries, strict=True):
                decisions[item.delivery] = self._committed(item, entry)
        return []

    def _committed(self, item: Item, entry: Entry) -> Decision:
        if entry is Entry.NEW:
            return DONE
        if entry is Entry.SEEN:
            return DUPLICATE
        return self._items.mismatch(item)

    async def _run(self, items: list[Item], tx: Any, run: Run) -> None:
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
            await self._inquiry.ask(tx, run)
            raise
        run.stage = Stage.OUTPUTS
        if not await self._inquiry.holds(tx, run.driver):
            raise TransactionEnded(UNDONE)
        if failures := {
            item.delivery: result for item, result in zip(items, results, strict=True) if isinstance(result, Exception)
        }:
            raise Undo(failures)
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
        try:
            result = binding.call([item.payload for item in items] if batching else items[0].payload, **extra)
        except GeneratorExit as raised:  # by a def handler: a failure, and no loop that ends
            raise RuntimeError(f"raised {raised!r}") from raised
        if binding.is_async:
            result = await result
        elif result is not None:
            self._check_done(result)
        if not batching or result is None:
            return [None] * len(items)
        if isinstance(result, list | tuple) and len(result) == len(items):
            return result
        wrong = TypeError(f"{binding.name} must return None or one result per message, {len(items)} here")
        raise Undo(dict.fromkeys((item.delivery for item in items), wrong))

    # ------------------------------------------------------------------------------------------------ when it is undone

    def _without(self, items: list[Item], failures: dict[Delivery, Exception], decisions: Decisions) -> list[Item]:
        for delivery, error in failures.items():
            decisions[delivery] = self.failed(delivery, error)
        return [item for item in items if item.delivery not in failures]

    async def _undone(self, items: list[Item], run: Run, error: BaseException, decisions: Decisions) -> None:
        fault = self._inquiry.trouble(run, error)
        if (
            run.unanswered and await self._outage.answers()
        ):  # the first run is at work still, and the session has no limit
            fault = Fault(Code.CONFLICT, True, detail="a row of another transaction was waited for")
        # What a handler's own statements do to a connection, or its silence, looks like a server that went away, or has no room.
        begun = run.stage in (Stage.HANDLER, Stage.OUTPUTS)  # at the commit nobody knows how it ended
        lost = (
            fault is not None
            and begun
            and (fault.code is Code.UNAVAILABLE or (fault.code is Code.OVERLOADED and fault.scope is Scope.MESSAGE))
            and self._store.patience is not None
        )
        full = fault is not None and begun and fault.code is Code.OVERLOADED and fault.scope is not Scope.MESSAGE
        own = [
            item
            for item in items
            if (lost and self._outage.is_its_own(item.delivery))
            or (full and self._outage.fills_the_disk(item.delivery))
        ]
        if own:
            fault = None
            log.warning(
                "%s: a run lost its connection, or found no room, once more while the database serves others, and so failed by "
                "itself: it may say nothing for longer than a transaction may be idle, or send a statement that is too large (%s)",
                items[0].delivery.message.id if len(items) == 1 else f"one of {len(items)} messages",
                one_line(words(error)),
            )
        if fault is not None and fault.code is not Code.CONFLICT:
            # Of a commit the row says how it ended, the next time.
            self._outage.begin(fault, [item.delivery for item in items] if lost else ())
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
        elif run.stage is Stage.CLAIM and isinstance(error, InvalidMessage):
            decisions[items[0].delivery] = self._items.refused(items[0], str(error))
        else:
            decisions[items[0].delivery] = self.failed(items[0].delivery, error)
