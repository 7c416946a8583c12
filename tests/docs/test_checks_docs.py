"""What the pages say of ``check`` and ``explain`` is what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "generate" / "checks.py"
sys.path.insert(0, str(SCRIPT.parent))


def test_tables_and_examples_are_those_of_the_code() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_comparison_sees_a_change_and_mends_it() -> None:
    import checks

    page = checks.PAGES[0].read_text()
    assert "<!-- rules: retry -->" in page
    assert "<!-- explain: " in page
    stale = page.replace("`chain-out-of-time` | refuse", "`chain-out-of-time` | warn").replace(
        "1: at once.", "1: later."
    )
    assert stale != page
    assert checks.written(stale) == checks.written(page) == page


def test_every_topic_names_rules_that_exist() -> None:
    import checks

    known = {rule.code for rule in checks.RULES}
    for codes in checks.TOPICS.values():
        assert codes <= known


@pytest.mark.parametrize("page", ["patterns/retry.md", "patterns/dead-letters.md", "cli.md"])
def test_every_mark_has_its_end(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert text.count("<!-- rules: ") + text.count("<!-- explain: ") == text.count("<!-- end -->") > 0
