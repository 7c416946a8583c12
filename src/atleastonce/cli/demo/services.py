"""The two services of the demo, as anyone would write them: each reads the same topic, fails in its own way, and does
every order once however often it is delivered.
"""

from __future__ import annotations

from collections.abc import Callable

from atleastonce.channels import Topic
from atleastonce.cli.demo.ledger import Effects, Ledger
from atleastonce.cli.demo.orders import Order
from atleastonce.cli.demo.world import InvoiceMismatch, book_parcel, charge_card
from atleastonce.context import Context
from atleastonce.errors import Discard
from atleastonce.patterns.failure import FailurePolicy, RetryChain
from atleastonce.service import Service

RETRY = RetryChain("200ms", "500ms", "1s")

# A batch shares one transaction. Larger batches commit less often; a crash repeats more.
BATCH = 200
COLLECT = "20ms"


def orders_topic(suffix: str) -> Topic[Order]:
    """``orders.created``, with a suffix that keeps one run of the demo apart from another."""
    return Topic(f"orders.created{suffix}", Order)


def billing(orders: Topic[Order], ledger: Ledger, *, fixed: bool) -> Service:
    """Charges every order. Release 1 has a bug; ``fixed`` is release 2."""
    service = Service("billing")
    in_cents = cents_of_release_2 if fixed else cents_of_release_1

    def charge(order: Order, context: Context, effects: Effects) -> None:
        cents = in_cents(order.total)
        if cents / 100 != order.total:
            raise InvoiceMismatch("the amount to charge is not the amount on the invoice")
        charge_card(context.message.id, context.attempt)
        effects.record(context, "charged", cents)

    @service.batch_consumer(
        orders,
        max_messages=BATCH,
        max_wait=COLLECT,
        failure=FailurePolicy(in_place=None, chain=RETRY, give_up_on=(InvoiceMismatch,)),
    )
    def charge_all(batch: list[Order], contexts: list[Context]) -> list[Exception | None]:
        return once_each(batch, contexts, ledger, charge)

    return service


def shipping(orders: Topic[Order], ledger: Ledger) -> Service:
    """Books a parcel for every order."""
    service = Service("shipping")

    def ship(order: Order, context: Context, effects: Effects) -> None:
        book_parcel(context.message.id, order.country, context.attempt)
        effects.record(context, "shipped")

    @service.batch_consumer(
        orders, max_messages=BATCH, max_wait=COLLECT, failure=FailurePolicy(in_place=None, chain=RETRY)
    )
    def ship_all(batch: list[Order], contexts: list[Context]) -> list[Exception | None]:
        return once_each(batch, contexts, ledger, ship)

    return service


def cents_of_release_1(euros: float) -> int:
    """The bug: 19.99 * 100 is 1998.9999999999998, and ``int`` cuts."""
    return int(euros * 100)


def cents_of_release_2(euros: float) -> int:
    """The fix."""
    return round(euros * 100)


def once_each(
    batch: list[Order], contexts: list[Context], ledger: Ledger, handle: Callable[[Order, Context, Effects], None]
) -> list[Exception | None]:
    """Handle each order that has had no effect yet: ids and effects in one transaction, one result per order."""
    results: list[Exception | None] = []
    with ledger.transaction() as effects:
        for order, context in zip(batch, contexts, strict=True):
            try:
                if effects.suppress(context):
                    pass
                elif order.status == "cancelled":
                    effects.record(context, "discarded")
                    raise Discard("cancelled by the customer")
                else:
                    handle(order, context, effects)
            except Exception as error:  # noqa: BLE001 - one order's failure is no other order's business
                results.append(error)
            else:
                results.append(None)
    return results
