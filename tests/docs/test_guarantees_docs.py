"""The page of guarantees is what its generator wrote, and says of each store what was promised."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).parents[2] / "docs" / "generate" / "guarantees.py"


def test_the_page_is_what_was_counted_and_every_promise_held() -> None:
    spec = importlib.util.spec_from_file_location("guarantees", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    rows, missing = msgspec.json.decode(made.RESULTS.read_bytes(), type=made.Kept)
    assert made.PAGE.read_text() == made.render(rows, missing)
    counted = {(row.mode, row.store) for row in rows}
    assert counted == {(mode, store) for mode, stores in made.STORES.items() for store in stores}
    assert [row for row in rows if not row.holds and row.fault != made.LOST] == []
    assert all(row.duplicate_effects == 0 for row in rows if row.mode == "inbox")
