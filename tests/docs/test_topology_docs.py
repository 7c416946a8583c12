"""What the page on autoscaling shows is what the command writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "generate" / "topology.py"
sys.path.insert(0, str(SCRIPT.parent))


def test_the_page_shows_what_the_command_writes() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_comparison_sees_a_change_and_mends_it() -> None:
    import topology

    (path,) = topology.PAGES
    page = path.read_text()
    assert page.count("<!-- export: ") + page.count("<!-- triggers: ") == page.count("<!-- end -->") > 1
    stale = page.replace('"orders.created.billing.retry.10m"', '"orders.created.retry.10m"')
    assert stale != page
    assert topology.written(stale) == page
