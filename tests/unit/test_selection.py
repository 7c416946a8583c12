"""The filters of dead letters, and their groups: pure."""

from __future__ import annotations

import random
from typing import Any

import pytest

from atleastonce import ConfigurationError, Queue, Selection, Source, Topic, wire
from atleastonce.contract import Delivery
from atleastonce.message import Headers, HeaderValue, Message
from atleastonce.offsets import OffsetTracker, decode, encode
from atleastonce.patterns.redrive import Groups, Letter
from atleastonce.patterns.redrive.passage import _Holes

NOW = 1_700_000_000.0
QUEUE = Source(Queue("orders.billing.dlq"))
HOME = Source(Topic("orders"), "billing")


def letter(
    id: str = "m1",
    body: bytes = b'{"total": 120, "lines": [], "customer": {"tier": "gold"}}',
    *,
    error: str = "ValueError",
    fingerprint: str = "aaaa1111",
    died: float | None = NOW - 60,
    published: float | None = None,
    **headers: HeaderValue,
) -> Letter:
    fields: dict[str, HeaderValue] = {
        wire.GROUP: "billing",
        wire.ORIGIN: "orders/0/7",
        wire.ERROR_STAGE: "handler",
        wire.ERROR_TYPE: error,
        wire.ERROR_MESSAGE: "no",
        wire.FINGERPRINT: fingerprint,
        **headers,
    }
    if died is not None:
        fields[wire.ERROR_AT] = wire.millis(died)
    return Letter(Delivery(Message(id, body, None, Headers(fields), published), QUEUE, "s", 1, 0, None))


def chosen(found: Letter, **conditions: Any) -> bool:
    return Selection(**conditions, now=lambda: NOW)(found)


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({}, True),
        ({"error_type": ["ValueError"]}, True),
        ({"error_type": "ValueError"}, True),
        ({"error_type": ["KeyError", "ValueError"]}, True),
        ({"error_type": ["Value"]}, False),
        ({"fingerprint": ["aaaa1111"]}, True),
        ({"fingerprint": ["aaaa"]}, True),
        ({"fingerprint": ["1111"]}, False),
        ({"id": ["m1", "m2"]}, True),
        ({"id": ["m2"]}, False),
        ({"older_than": "1m"}, True),
        ({"older_than": "61s"}, False),
        ({"newer_than": "61s"}, True),
        ({"newer_than": "1m"}, False),
        ({"older_than": "30s", "newer_than": "2m"}, True),
        ({"headers": [("tenant", "a")]}, True),
        ({"headers": [("tenant", "b")]}, False),
        ({"headers": [("tenant", "a"), ("raw", "\u00e9")]}, True),
        ({"headers": [("tenant", "a"), ("absent", "")]}, False),
        ({"where": "total > `100`"}, True),
        ({"where": "total > `120`"}, False),
        ({"where": "customer.tier == 'gold' && total >= `120`"}, True),
        ({"where": "lines"}, False),
        ({"where": "absent"}, False),
        ({"where": "length(lines) == `0`"}, True),
        ({"where": "length(lines)"}, True),  # 0 is not false in JMESPath
        ({"where": "length(total)"}, False),  # this body is not made so
        ({"error_type": ["ValueError"], "id": ["m2"]}, False),
    ],
)
def test_a_letter_fits_every_condition(conditions: dict[str, Any], fits: bool) -> None:
    assert chosen(letter(tenant="a", raw="\u00e9".encode()), **conditions) is fits


def test_an_exception_is_known_with_and_without_its_package() -> None:
    spring = letter(error="com.acme.Broken")
    assert chosen(spring, error_type=["Broken"])
    assert chosen(spring, error_type=["com.acme.Broken"])
    assert not chosen(spring, error_type=["acme.Broken"])


def test_what_has_no_time_is_neither_old_nor_new_and_the_publish_counts_where_nobody_wrote_one() -> None:
    assert not chosen(letter(died=None), older_than="0s")
    assert not chosen(letter(died=None), newer_than="100h")
    assert chosen(letter(died=None, published=NOW - 60), newer_than="61s")


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"{", b"plain text", b"[" * 100_000, b"null", b'"x"', b"[]"])
def test_bodies_that_are_no_objects_fit_no_expression_and_break_none(body: bytes) -> None:
    assert not chosen(letter(body=body), where="total > `100`")


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ({"where": "total >"}, "no JMESPath"),
        ({"where": ""}, "no JMESPath"),
        ({"where": "total > 100"}, "backticks"),
        ({"where": "size(total)"}, "size"),
        ({"where": "length()"}, "length"),
        ({"older_than": "soon"}, "older_than"),
        ({"newer_than": "-1s"}, "newer_than"),
        ({"older_than": "2h", "newer_than": "1h"}, "never"),
        ({"id": [""]}, "id"),
        ({"fingerprint": [""]}, "fingerprint"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(conditions: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        Selection(**conditions)
    assert "\n" not in str(refused.value)


def test_a_selection_knows_whether_it_chooses() -> None:
    assert not Selection()
    assert Selection(id=["m"])
    assert Selection(where="a")


def test_groups_count_by_fingerprint_and_show_the_latest() -> None:
    groups = Groups(HOME)
    groups.add([letter("a", died=NOW - 50, **{wire.FIRST_FAILED: wire.millis(NOW - 500)}), letter("b", died=NOW - 10)])
    groups.add([letter("c", died=NOW - 30), letter("d", fingerprint="bbbb", error="KeyError", died=None)])
    first, second = groups.rows()
    assert (first.channel, first.group, first.fingerprint, first.error_type) == (
        "orders",
        "billing",
        "aaaa1111",
        "ValueError",
    )
    assert (first.count, first.first_failed, first.last_failed, first.example_id) == (3, NOW - 500, NOW - 10, "b")
    assert (second.count, second.first_failed, second.last_failed, second.example_id) == (1, None, None, "d")
    assert Groups(Source(Queue("q"))).rows() == []


def test_what_a_group_shows_outlives_the_list_that_it_came_with() -> None:
    first = {wire.FIRST_FAILED: wire.millis(NOW - 500)}
    groups = Groups(HOME)
    for at, error in ((NOW - 20, "ValueError"), (NOW - 10, "OSError"), (NOW - 30, "KeyError")):
        found = letter(error, died=at, error=error, **first)
        groups.add([found])
        found.delivery.shed()  # as it is given back
    (row,) = groups.rows()
    assert (row.error_type, row.error_message, row.stage) == ("OSError", "no", "handler")
    assert (row.example_id, row.count, row.last_failed) == ("OSError", 3, NOW - 10)


@pytest.mark.parametrize("every", [2, 3, 7, 50, 1000])
@pytest.mark.parametrize("start", [0, 2**40])
@pytest.mark.parametrize("noisy", [False, True])
def test_what_is_held_on_a_log_fits_into_what_its_commit_remembers(every: int, start: int, noisy: bool) -> None:
    """Of 150 000 letters in a partition one in ``every`` is not wanted: held, or put back as a copy. The rest is done, and the
    commit must remember all of that, or the next list shows what is gone."""
    chance = random.Random(every)
    tracker: OffsetTracker[None] = OffsetTracker(start)
    offsets = range(start, start + 150_000)
    tracker.receive(offsets, [None] * len(offsets))
    holes, held = _Holes(), set()
    for offset in offsets:
        unwanted = chance.random() < 1 / every if noisy else offset % every == 0
        if unwanted and holes.add(offset):
            held.add(offset)
        else:
            tracker.complete(offset)
    point = tracker.point()
    assert point is not None
    found = decode(encode(point), point.offset)
    assert found == point.ahead
    assert sum(end - begin for begin, end in point.ahead) + (point.offset - start) == len(offsets) - len(held)
    assert held
