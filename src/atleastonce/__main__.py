"""``python -m atleastonce``."""

from __future__ import annotations

from atleastonce.cli import main

if __name__ == "__main__":
    main()
