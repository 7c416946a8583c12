"""The garbage collector's settings: changed for a while, given back, and never taken from somebody who has set them."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from atleastonce.engine import collector


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_it_collects_less_often_and_then_as_before() -> None:
    gc.set_threshold(*collector.DEFAULT)
    with collector.tuned():
        assert gc.get_threshold() == (collector.YOUNG, collector.OLDER, collector.OLDER)
        assert gc.get_freeze_count()
    assert gc.get_threshold() == collector.DEFAULT
    assert not gc.get_freeze_count()


def test_what_a_program_has_set_stays() -> None:
    gc.set_threshold(12_345, 6, 7)
    with collector.tuned():
        assert gc.get_threshold() == (12_345, 6, 7)
        assert not gc.get_freeze_count()


def test_what_a_program_has_frozen_stays_frozen() -> None:
    gc.set_threshold(*collector.DEFAULT)
    gc.freeze()
    with collector.tuned():
        assert gc.get_threshold() == collector.DEFAULT
    assert gc.get_freeze_count()
