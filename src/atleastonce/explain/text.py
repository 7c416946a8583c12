"""An explanation as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from atleastonce.durations import readable
from atleastonce.explain.model import Attempt, Explanation


def lines(explanation: Explanation, width: int = 100) -> Iterator[str]:
    """``explanation``, section by section."""
    yield f"{explanation.handler} reads {explanation.source}"
    for title, texts in (
        ("delivery", explanation.delivery),
        ("who gets it", explanation.recipients),
        ("order", explanation.order),
        ("attempts", [*map(_attempt, explanation.attempts), explanation.tries]),
        ("where it ends", explanation.ends),
        ("what is lost", explanation.lost),
        ("if the process dies", [f"{crash.when}: {crash.then}" for crash in explanation.crashes]),
        ("if the broker fails", explanation.failover),
        ("at shutdown", explanation.shutdown),
    ):
        yield ""
        yield f"  {title}"
        for text in texts:
            yield from textwrap.wrap(
                text,
                width,
                initial_indent="    - ",
                subsequent_indent="      ",
                break_long_words=False,
                break_on_hyphens=False,
            )


def _attempt(attempt: Attempt) -> str:
    if attempt.number == 1:
        return "1: at once."
    where = f" in {attempt.where}" if attempt.where else ""
    after = readable(attempt.after)
    return f"{attempt.number}: after waiting {readable(attempt.wait)}{where}; {after} after the first failure at the earliest."
