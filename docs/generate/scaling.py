"""Writes the tables of docs/scaling.md from benchmarks/results/scaling.json; measuring is `benchmarks/scaling.py --save`.

    python docs/generate/scaling.py [--check]

Exit code 1 with ``--check`` if the page is not what the results say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from scaling_page import PAGE, RESULTS, render, write_page

if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        page = PAGE.read_text()
        sys.exit(page != render(page, json.loads(RESULTS.read_text())))
    write_page()
