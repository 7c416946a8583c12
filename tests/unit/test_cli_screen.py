"""What the demo shows: a live screen on a terminal, lines elsewhere, the account at the end."""

from __future__ import annotations

import io

from rich.console import Console

from atleastonce.cli.demo.account import settle_account
from atleastonce.cli.demo.ledger import Totals
from atleastonce.cli.demo.screen import LiveScreen, PlainLines, display, show_account
from atleastonce.cli.demo.watch import Part, View


def view(done: int) -> View:
    part = Part("billing", Totals(done, 7, 0, 1, 4), dead=3, waiting=20, in_flight=11, retrying=5, known=True)
    return View(total=100, published=90, parts=(part,))


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100, highlight=False, markup=False), out


def test_a_pipe_gets_lines() -> None:
    target, out = console(terminal=False)
    with display(target) as screen:
        assert isinstance(screen, PlainLines)
        screen.event("kill -9 [billing-1]")
        screen.show(view(40))
        screen.show(view(41))  # at once after the first: not printed
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("s  kill -9 [billing-1]")
    assert lines[1].endswith("published 90 of 100; billing done 48, waiting 31, for a retry 5, dead 3")


def test_a_terminal_gets_a_screen() -> None:
    target, out = console(terminal=True)
    with display(target) as screen:
        assert isinstance(screen, LiveScreen)
        screen.event("kill -9 [billing-1]")
        screen.show(view(40))
    text = out.getvalue()
    assert "kill -9 [billing-1]" in text
    row = next(line for line in text.splitlines() if line.startswith("billing"))
    assert row.split()[-5:] == ["48", "7", "31", "5", "3"]


def test_the_account_has_every_ending_once_and_says_what_is_lost() -> None:
    target, out = console(terminal=False)
    account = settle_account(
        broker="memory://",
        published=["a", "b", "c"],
        unconfirmed=0,
        ledgers={"billing": {"a": "done", "b": "redriven"}, "shipping": {"a": "done", "b": "done"}},
        suppressed={"billing": 1, "shipping": 1},
        dead={"billing": ["c"], "shipping": []},
        seconds=2.0,
    )
    show_account(target, account)
    text = out.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [
        ["done", "1", "1", "2"],
        ["done after retry", "0", "0", "0"],
        ["redriven, then done", "1", "1", "0"],
        ["discarded by decision", "0", "0", "0"],
        ["still dead", "0", "1", "0"],
        ["lost", "1", "0", "1"],
        ["published", "3", "3", "3"],
    ]
    assert "lost by shipping: c" in text
    assert "LOST 1 messages" in text
