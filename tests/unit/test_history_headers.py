"""Whose headers are believed: this consumer's own, and nobody else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import Queue, Source, Topic, wire
from atleastonce.contract import Delivery
from atleastonce.message import Headers, Message
from atleastonce.patterns.history import History, read_history

BILLING = Source(Topic("orders"), "billing")
QUOTES = Source(Queue("quotes"))
PAST = {wire.ATTEMPT: "3", wire.FIRST_FAILED: "1700000000250", wire.REDRIVES: "2"}
UNTOUCHED = History(1, None, 0, False)


def read(
    headers: dict[str, str | bytes | None],
    *,
    home: Source = BILLING,
    count: int = 0,
    counted: bool = False,
    returned: bool = True,
) -> History:
    delivery = Delivery(Message("m", b"", None, Headers(headers)), home, "s", 1, 1, None, count)
    delivery.returned = returned
    return read_history(delivery, home, counted=counted)


def test_ours_are_believed() -> None:
    mine = {**PAST, wire.GROUP: "billing", wire.ORIGIN: "orders/3/41"}
    assert read(mine) == History(3, 1700000000.25, 2, True)
    assert read({**PAST, wire.GROUP: "quotes", wire.ORIGIN: "quotes"}, home=QUOTES) == History(
        3, 1700000000.25, 2, True
    )
    assert read({**mine, wire.GROUP: b"billing"}).ours, "some brokers give bytes"


def test_on_a_main_channel_nobody_writes_a_hops_fields() -> None:
    forged = {**PAST, wire.ATTEMPT: "32767", wire.GROUP: "billing", wire.ORIGIN: "orders/0/5"}
    assert read(forged, returned=False) == History(1, None, 2, True)


def test_a_retry_channel_is_believed_without_the_brokers_word() -> None:
    mine = {**PAST, wire.GROUP: "billing", wire.ORIGIN: "orders/3/41"}
    room = Source(BILLING.retry_channel(5.0))
    delivery = Delivery(Message("m", b"", None, Headers(mine)), room, "s", 1, 1, None, 0)
    assert read_history(delivery, BILLING, counted=False) == History(3, 1700000000.25, 2, True)


@pytest.mark.parametrize(
    "others",
    [
        {},
        {wire.GROUP: "billing"},
        {wire.ORIGIN: "orders/3/41"},
        {wire.GROUP: "shipping", wire.ORIGIN: "orders/3/41"},
        {wire.GROUP: "billing", wire.ORIGIN: "payments/3/41"},
        {wire.GROUP: "billing", wire.ORIGIN: "orders.v2/1"},
        {wire.GROUP: "billing", wire.ORIGIN: ""},
        {wire.GROUP: "billing", wire.ORIGIN: None},
        {wire.GROUP: None, wire.ORIGIN: "orders"},
        {wire.GROUP: "Billing", wire.ORIGIN: "orders"},
    ],
)
def test_what_another_wrote_is_ignored(others: dict[str, str | bytes | None]) -> None:
    assert read({**PAST, **others}) == UNTOUCHED


def test_a_raw_clients_message_has_no_past() -> None:
    assert read({}) == read({"tenant": "a"}) == UNTOUCHED


@pytest.mark.parametrize(("count", "attempt"), [(0, 1), (1, 1), (2, 2), (7, 7), (-3, 1)])
def test_where_the_broker_counts_its_count_is_the_attempt(count: int, attempt: int) -> None:
    assert read({}, count=count, counted=True).attempt == attempt
    assert read({}, count=count, counted=False).attempt == 1
    mine = {wire.GROUP: "billing", wire.ORIGIN: "orders", wire.ATTEMPT: "4"}
    assert read(mine, count=count, counted=True).attempt == 3 + attempt


@given(
    st.dictionaries(st.sampled_from([*PAST, wire.GROUP, wire.ORIGIN]), st.none() | st.text() | st.binary()),
    st.integers(-5, 2**40),
)
def test_nothing_forged_raises(headers: dict[str, str | bytes | None], count: int) -> None:
    forged = {wire.GROUP: "billing", wire.ORIGIN: "orders", **headers}
    for counted in (False, True):
        past = read(forged, count=count, counted=counted)
        assert past.attempt >= 1
        assert 0 <= past.redrives <= wire.MAX_ATTEMPT
        assert past.first_failed is None or 0 < past.first_failed <= 10**12
