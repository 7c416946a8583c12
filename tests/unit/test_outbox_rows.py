"""Rows of an outbox: as columns and back, and lists of their numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atleastonce import Message, Topic
from atleastonce.contract import Outgoing
from atleastonce.message import Headers, HeaderValue
from atleastonce.stores.outbox import _RUNS, OutboxRow, gaps, runs, stored
from atleastonce.stores.postgres.outbox import _numbers, _texts

TEXTS = st.one_of(st.text(max_size=5), st.sampled_from(['"', "\\", '"]]', ',["alo-id","', "\\u0041", "{}", "a" * 2000]))
FIELDS = st.lists(st.tuples(TEXTS, st.one_of(TEXTS, st.binary(max_size=3), st.none())), max_size=3)
IDS = st.one_of(TEXTS, st.integers(0, 3).map(str))


@given(st.lists(st.tuples(FIELDS, IDS, IDS), max_size=5))
def test_header_fields_come_back_whatever_is_in_them(
    messages: list[tuple[list[tuple[str, HeaderValue]], str, str]],
) -> None:
    """The id's field last, as `Outbox` writes it, whether it is the message's or not."""
    sent = [
        Outgoing(Topic("t"), Message(id, b"b", None, Headers([*fields, ("alo-id", named)])))
        for fields, id, named in messages
    ]
    for _ in range(2):
        columns = [
            (seq, row.slot, row.destination, row.settings, row.id, row.key, row.headers, row.body)
            for seq, row in enumerate(stored(sent))
        ]
        rows = OutboxRow.of(columns)
        assert [row.outgoing for row in rows] == sent
        assert [row.seq for row in rows] == [*range(len(sent))]


@pytest.mark.parametrize(
    "headers", ["nonsense", '[["a",1],["alo-id","m"]]', '[["a","x"]],["alo-id","m"]]', '"x",["alo-id","m"]]']
)
def test_header_fields_that_are_none_are_a_flaw_of_their_row_alone(headers: str) -> None:
    good = '[["a","x"],["alo-id","m"]]'
    rows = OutboxRow.of(
        (seq, 0, "topic:t", None, "m", None, text, b"") for seq, text in enumerate((good, headers, good))
    )
    assert [row.outgoing is None for row in rows] == [False, True, False]
    assert re.match("the row cannot be read: ", rows[1].flaw)


@given(st.sets(st.integers(0, 200)))
def test_runs_and_others_are_all_numbers_once(numbers: set[int]) -> None:
    long, others = runs(numbers)
    found = [*others, *(number for first, last in long for number in range(first, last + 1))]
    assert sorted(found) == sorted(numbers)
    assert all((last - first + 1) * _RUNS >= len(numbers) for first, last in long)
    assert len(long) <= _RUNS


def test_many_short_runs_are_a_list_to_the_database() -> None:
    """What one of several relays holds: comparing each row with a lot of pairs took longer."""
    numbers = [*range(0, 3000, 3), *range(1, 3000, 3)]
    assert runs(numbers) == ([], sorted(numbers))
    assert runs([*numbers, *range(5000, 6000)]) == ([(5000, 5999)], sorted(numbers))


def test_what_a_relay_alone_holds_is_one_run() -> None:
    assert runs(range(7, 3000)) == ([(7, 2999)], [])
    assert runs([]) == ([], [])
    assert runs([5]) == ([(5, 5)], [])


def test_lists_as_postgresql_reads_them() -> None:
    assert (_numbers([]), _numbers([1, -2])) == ("{}", "{1, -2}")
    assert (_texts([]), _texts([""]), _texts(["a", 'b"', "\\,{} NULL"])) == (
        "{}",
        '{""}',
        '{"a","b\\"","\\\\,{} NULL"}',
    )


@given(st.lists(st.integers(1, 60), max_size=40))
def test_gaps_are_all_but_the_runs(numbers: list[int]) -> None:
    between, others = gaps(numbers)
    long, rest = runs(numbers)
    assert others == rest
    for n in range(-2, 65):
        assert sum(first <= n <= last for first, last in between) == (not any(a <= n <= b for a, b in long))
    assert (between[0][0], between[-1][1]) == (1 - (1 << 63), (1 << 63) - 1)
