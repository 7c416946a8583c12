"""What `dlq redrive` and `purge` have in common."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from atleastonce import Queue, connect
from atleastonce.cli.dlq.running import run_over
from atleastonce.engine import collector
from atleastonce.patterns.redrive import Redriven


class Target:
    """The dead letters of one queue on the broker in memory."""

    def make(self) -> Any:
        return connect("memory://")

    def letters(self, opened: Any) -> Any:
        return [opened.dead_letters(Queue[Any]("orders"))]


def test_the_collector_looks_less_often_while_letters_are_moved(capsys: pytest.CaptureFixture[str]) -> None:
    before = gc.get_threshold()
    found: list[tuple[int, int, int]] = []

    async def run(*_: Any) -> Redriven:
        found.append(gc.get_threshold())
        return Redriven()

    gc.set_threshold(*collector.DEFAULT)
    try:
        run_over(Target(), None, run, Redriven(), as_json=True)  # type: ignore[arg-type]
        assert gc.get_threshold() == collector.DEFAULT
    finally:
        gc.set_threshold(*before)
    assert found == [(collector.YOUNG, collector.OLDER, collector.OLDER)]
