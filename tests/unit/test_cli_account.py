"""The closing account: every message once, under its worst ending."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from atleastonce.cli.demo.account import ENDINGS, settle_account

LEDGER_ENDINGS = [ending for ending in ENDINGS if ending not in ("dead", "lost")]
IDS = st.sampled_from([f"order-{n}" for n in range(30)])


def account(published: Any, billing: Any, shipping: Any, dead: Any = ()) -> Any:
    return settle_account(
        broker="memory://",
        published=published,
        unconfirmed=0,
        ledgers={"billing": billing, "shipping": shipping},
        suppressed={"billing": 3, "shipping": 4},
        dead={"billing": dead, "shipping": ()},
        seconds=1.25,
    )


def test_a_message_takes_the_worst_of_its_endings() -> None:
    billing = {"a": "done", "b": "redriven", "c": "done_after_retry"}
    shipping = {"a": "done_after_retry", "b": "done", "c": "discarded", "d": "done"}
    result = account(["a", "b", "c", "d", "e"], billing, shipping, dead=["d"])
    assert result.endings == {
        "done": 0,
        "done_after_retry": 1,
        "redriven": 1,
        "discarded": 1,
        "dead": 1,
        "lost": 1,
    }
    assert result.services[1].lost == ["e"]


def test_the_report_has_the_fixed_shape() -> None:
    report = account(["a"], {"a": "done"}, {"a": "done"}).report()
    assert list(report) == [
        "broker",
        "published",
        "unconfirmed",
        "done",
        "done_after_retry",
        "redriven",
        "dead",
        "discarded",
        "duplicates_suppressed",
        "lost",
        "seconds",
    ]
    assert report["duplicates_suppressed"] == 7


def test_a_second_copy_among_the_dead_letters_does_not_undo_an_effect() -> None:
    assert account(["a"], {"a": "redriven"}, {"a": "done"}, dead=["a"]).endings["redriven"] == 1


def test_an_effect_of_what_was_never_confirmed_is_no_message() -> None:
    result = account(["a"], {"a": "done", "x": "done"}, {"a": "done"})
    assert result.published == 1
    assert result.endings["done"] == 1


@given(
    st.sets(IDS),
    st.dictionaries(IDS, st.sampled_from(LEDGER_ENDINGS)),
    st.dictionaries(IDS, st.sampled_from(LEDGER_ENDINGS)),
    st.sets(IDS),
)
def test_the_endings_add_up(published: set[str], billing: Any, shipping: Any, dead: set[str]) -> None:
    result = account(published, billing, shipping, dead)
    assert sum(result.endings.values()) == len(published) == result.published
    for service in result.services:
        assert sum(service.endings.values()) == len(published)
    whole = [i for i in published if i in billing and i in shipping]
    assert result.endings["dead"] + result.endings["lost"] == len(published) - len(whole)
