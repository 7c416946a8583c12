"""The page on joins and leaves is what was measured, and does not pass over a defect."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from scaling_page import NAMES, PAGE, RESULTS, render  # noqa: E402

REPORT = json.loads(RESULTS.read_text())


def test_the_tables_are_what_the_results_say() -> None:
    page = PAGE.read_text()
    assert page == render(page, REPORT)


def test_every_kind_of_queue_was_measured_and_nothing_was_lost_overtaken_or_with_two_at_a_time() -> None:
    assert [row["what"] for row in REPORT["rows"]] == list(NAMES)
    for row in REPORT["rows"]:
        assert row["lost"] == 0, row["what"]
        assert not row["reordered"], row["what"]
        assert not row["overlaps"], row["what"]
        assert row["repeated"] < row["messages"] * 0.01, row["what"]
