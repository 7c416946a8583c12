"""Python's garbage collector in a process that does nothing but handle messages.

Messages in flight outlive a few young collections and so reach the oldest generation, whose collections walk through all
that the process has ever imported. With the default thresholds that was a tenth of what a message cost (Kafka, empty
handler). Nothing here changes what is collected, only how often it is looked for.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

DEFAULT = gc.get_threshold()
"""As they were when this was imported: Python's own, unless the program had set them by then."""

# Containers made before a young collection. Fewer: collections walk through the same messages in flight again and again.
# More: cycles that a handler leaves behind (an exception that refers to its own frame) hold their memory for longer.
YOUNG = 20_000
# How many collections of one generation lead to one of the next; Python's own default is 10.
OLDER = 20


@contextmanager
def tuned() -> Iterator[None]:
    """Put everything that exists aside (`gc.freeze`) and collect less often, for the block. For a process of one's own; one that
    has set its thresholds since this was imported, or frozen something, is left as it is."""
    before = gc.get_threshold()
    if before != DEFAULT or gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
