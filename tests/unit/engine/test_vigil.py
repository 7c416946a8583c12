"""What a state says while a broker is silent, and what the log says of it."""

from __future__ import annotations

import logging

import pytest

from atleastonce.engine.vigil import State, Vigil
from atleastonce.silence import Owed

NOW = 100.0


def vigil(told: State, since: float | None) -> Vigil:
    owed = None if since is None else Owed("an answer to Acknowledge", since)
    made = Vigil("orders", lambda: owed, lambda: NOW)
    made.told = told
    return made


@pytest.mark.parametrize(
    ("told", "since", "state"),
    [
        (("running", "there"), None, ("running", "there")),
        (("running", "there"), NOW - 2.9, ("running", "there")),
        (("running", "there"), NOW - 3.0, ("disconnected", "no answer for 3 s: an answer to Acknowledge")),
        (("running", ""), NOW - 61.0, ("disconnected", "no answer for 61 s: an answer to Acknowledge")),
        # Who says more than "running" knows better.
        (("disconnected", "connection refused"), NOW - 60.0, ("disconnected", "connection refused")),
        (("blocked", "alarm"), NOW - 60.0, ("blocked", "alarm")),
        (("stopped", ""), NOW - 60.0, ("stopped", "")),
    ],
)
def test_silence_is_a_state_where_nothing_else_is_known(told: State, since: float | None, state: State) -> None:
    assert vigil(told, since).state == state


def test_the_log_says_once_that_a_silence_began_and_once_that_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    now, owed = NOW, Owed("an answer to Pull", NOW)
    told: list[Owed | None] = [owed]
    watching = Vigil("orders", lambda: told[0], lambda: now)
    watching.told = ("running", "")
    with caplog.at_level(logging.INFO, "atleastonce.engine"):
        watching.look()
        assert not caplog.messages
        now += 4.0
        watching.look()
        now += 1.0
        watching.look()
        assert caplog.messages == ["orders: no answer for 4 s: an answer to Pull"]
        told[0] = None
        watching.look()
        watching.look()
        assert caplog.messages[1:] == ["orders: the broker answers again"]
        told[0] = owed
        watching.look()
        watching.told = ("disconnected", "reset")  # told by the adapter, which tells the end as well
        watching.look()
        assert len(caplog.messages) == 3
