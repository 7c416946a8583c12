"""Writes docs/conformance.md from the results in docs/conformance/.

The results come from a run against real brokers: pytest tests/conformance --conformance-report docs/conformance
"""

import sys
from pathlib import Path

from atleastonce.testing.conformance.table import main

DOCS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.exit(main([str(DOCS / "conformance"), str(DOCS / "conformance.md"), *sys.argv[1:]]))
