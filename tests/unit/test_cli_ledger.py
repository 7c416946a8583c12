"""The demo's ledger and its handlers: an effect and the id of its message in one transaction."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from atleastonce import Context, Message, Source, Topic
from atleastonce.cli.demo.ledger import Effects, Ledger, Totals
from atleastonce.cli.demo.orders import Order
from atleastonce.cli.demo.services import once_each
from atleastonce.cli.demo.world import CarrierUnavailable, GatewayTimeout, book_parcel, charge_card
from atleastonce.contract import Delivery
from atleastonce.errors import Discard
from atleastonce.patterns.history import History


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def context(message_id: str, attempt: int = 1, redrives: int = 0) -> Context:
    source = Source(Topic[Any]("orders"), "billing")
    delivery = Delivery(Message(message_id, b""), source, "", "", 0, None)
    past = History(attempt, None, redrives, True)
    return Context(delivery, lambda: pytest.fail("nothing is published"), lambda _: past)


def order(number: int, status: Any = "placed") -> Order:
    return Order(number, "c", 1.0, status)


def test_endings_follow_from_attempt_redrive_and_decision(ledger: Ledger) -> None:
    with ledger.transaction() as effects:
        effects.record(context("a"), "charged")
        effects.record(context("b", attempt=2), "charged")
        effects.record(context("c", attempt=2, redrives=1), "charged")
        effects.record(context("d"), "discarded")
        assert effects.suppress(context("a"))
        assert effects.suppress(context("a"))
        assert not effects.suppress(context("x"))
    assert ledger.endings() == {"a": "done", "b": "done_after_retry", "c": "redriven", "d": "discarded"}
    assert ledger.totals() == Totals(1, 1, 1, 1, 2)


def test_a_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    def record(*ids: str) -> None:
        with ledger.transaction() as effects:
            for message_id in ids:
                effects.record(context(message_id), "charged")

    with pytest.raises(sqlite3.IntegrityError):
        record("a", "b", "a")
    assert ledger.totals() == Totals()


def test_two_threads_and_two_processes_worth_of_handlers_do_each_order_once(ledger: Ledger, tmp_path: Path) -> None:
    others = [ledger, ledger, Ledger(tmp_path / "ledger.db")]
    orders = [order(n) for n in range(200)]
    contexts = [context(f"order-{n}") for n in range(200)]

    def handle(order: Order, context: Context, effects: Effects) -> None:
        effects.record(context, "charged")

    def work(mine: Ledger) -> None:
        for begin in range(0, 200, 20):
            part = slice(begin, begin + 20)
            assert once_each(orders[part], contexts[part], mine, handle) == [None] * 20

    threads = [threading.Thread(target=work, args=(each,)) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    others[2].close()
    assert ledger.totals() == Totals(done=200, suppressed=400)


def test_one_orders_failure_is_no_other_orders_business(ledger: Ledger) -> None:
    def handle(order: Order, context: Context, effects: Effects) -> None:
        if order.order_id == 1:
            raise GatewayTimeout("no answer")
        effects.record(context, "charged")

    batch = [order(0), order(1), order(2, "cancelled"), order(3)]
    contexts = [context(f"order-{n}") for n in range(4)]
    results = once_each(batch, contexts, ledger, handle)
    assert [type(result) for result in results] == [type(None), GatewayTimeout, Discard, type(None)]
    assert ledger.endings() == {"order-0": "done", "order-2": "discarded", "order-3": "done"}
    assert once_each(batch[2:3], contexts[2:3], ledger, handle) == [None]
    assert ledger.totals().suppressed == 1


def test_the_world_fails_some_for_one_or_two_attempts_and_the_same_ones_always() -> None:
    def failures(attempt: int) -> tuple[int, int]:
        charges = parcels = 0
        for n in range(2000):
            try:
                charge_card(f"order-{n}", attempt)
            except GatewayTimeout:
                charges += 1
            try:
                book_parcel(f"order-{n}", "DE", attempt)
            except CarrierUnavailable:
                parcels += 1
        return charges, parcels

    first, second, third = failures(1), failures(2), failures(3)
    assert first == failures(1)
    assert first > second > third == (0, 0)
    assert 100 < first[0] < 250
    assert 60 < first[1] < 150
