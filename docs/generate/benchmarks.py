"""Writes docs/benchmarks.md from the figures in benchmarks/results; measuring is `benchmarks/run.py --save`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from report import write_page

if __name__ == "__main__":
    write_page()
