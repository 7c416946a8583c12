"""What is owed and since when, as it is written down and looked at."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from atleastonce.silence import Owed, Silence


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def silence(clock: Clock) -> Silence:
    return Silence(clock)


# What happens, with the time of each; and what a look at 120 says.
HISTORIES: list[tuple[str, list[tuple[float, str]], float | None]] = [
    ("nothing was asked", [], None),
    ("nothing was asked, something came", [(105, "heard")], None),
    ("a question", [(110, "ask a")], 110),
    ("an answered one", [(110, "ask a"), (112, "answer a")], None),
    ("the first of two", [(110, "ask a"), (115, "ask b")], 110),
    ("the second of two", [(110, "ask a"), (115, "ask b"), (116, "answer a")], 116),
    ("something came since", [(110, "ask a"), (117, "heard")], 117),
    ("something came before", [(105, "heard"), (110, "ask a")], 110),
    ("may be waited with, still", [(111, "poll a")], None),
    ("may be waited with, no longer", [(105, "poll a")], 115),
    ("a question beside a poll", [(105, "poll a"), (107, "ask b")], 107),
    ("given up, and asked again", [(100, "ask a"), (110, "miss a"), (111, "ask b")], 100),
    ("given up, and asked much later", [(100, "ask a"), (105, "miss a"), (118, "ask b")], 118),
    ("given up twice", [(100, "ask a"), (105, "miss a"), (106, "ask b"), (112, "miss b"), (113, "ask c")], 100),
    ("given up, heard, asked again", [(100, "ask a"), (110, "miss a"), (111, "heard"), (112, "ask b")], 112),
    ("heard while it was waited for, given up", [(100, "ask a"), (105, "heard"), (110, "miss a"), (111, "ask b")], 105),
    ("given up, then a poll", [(100, "ask a"), (108, "miss a"), (109, "poll b")], 119),
    ("given up, and nothing else", [(100, "ask a"), (110, "miss a")], None),
    ("dropped, and asked again", [(100, "ask a"), (110, "drop a"), (111, "ask b")], 111),
]


@pytest.mark.parametrize(("history", "since"), [each[1:] for each in HISTORIES], ids=[each[0] for each in HISTORIES])
def test_silence_begins_when_an_answer_was_due_or_with_the_last_word(
    clock: Clock, silence: Silence, history: list[tuple[float, str]], since: float | None
) -> None:
    asked: dict[str, int] = {}
    for clock.now, what in history:
        verb, _, name = what.partition(" ")
        if verb in ("ask", "poll"):
            asked[name] = silence.asked(f"an answer to {name}", allowed=10.0 if verb == "poll" else 0.0)
        elif verb == "heard":
            silence.heard()
        else:
            {"answer": silence.answered, "miss": silence.missed, "drop": silence.dropped}[verb](asked[name])
    clock.now = 120.0
    found = silence.look()
    assert (found.since if found else None) == since
    if found is not None:
        assert found.what.startswith("an answer to ")


@pytest.mark.parametrize(
    ("due", "heard", "since"),
    [(None, None, None), (118.0, None, 118.0), (121.0, None, None), (105.0, 119.0, 119.0), (105.0, 104.0, 105.0)],
)
def test_what_is_owed_beside_counts_like_a_question(
    clock: Clock, silence: Silence, due: float | None, heard: float | None, since: float | None
) -> None:
    if heard is not None:
        clock.now = heard
        silence.heard()
    clock.now = 120.0
    found = silence.look(None if due is None else Owed("a heartbeat", due))
    assert found == (None if since is None else Owed("a heartbeat", since))


@pytest.mark.parametrize(
    ("error", "since"),
    [(None, None), (TimeoutError, 100.0), (asyncio.CancelledError, 111.0), (KeyboardInterrupt, 100.0)],
)
def test_a_block_that_raises_was_not_answered(
    clock: Clock, silence: Silence, error: type[BaseException] | None, since: float | None
) -> None:
    expected = contextlib.nullcontext() if error is None else pytest.raises(error)
    with expected, silence.until("a reply"):
        clock.now = 110.0
        if error is not None:
            raise error
    clock.now = 111.0
    if error is not None:
        silence.asked("another")
    clock.now = 120.0
    found = silence.look()
    assert (found.since if found else None) == since


def test_other_threads_write_while_somebody_looks() -> None:
    silence = Silence()
    over = time.monotonic() + 0.5

    def ask() -> None:
        while time.monotonic() < over:
            numbers = [silence.asked("x") for _ in range(10)]
            for number in numbers:
                silence.answered(number)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while time.monotonic() < over:
        silence.look()  # raises where it meets a change
    for thread in threads:
        thread.join()
    assert silence.look() is None
