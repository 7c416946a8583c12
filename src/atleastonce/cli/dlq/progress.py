"""A bar with an end in sight, on stderr, where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from atleastonce.cli.output import console
from atleastonce.patterns.redrive import Purged, Redriven
from atleastonce.patterns.redrive.moves import Progress as Told


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}"),
    )
    terminal = console(stderr=True)
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)


@contextmanager
def reading(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives what to tell how many were read."""
    with _bar() as bar:
        task = bar.add_task(name, total=total, counts="")
        yield lambda seen: bar.update(task, completed=seen)


@contextmanager
def moving(name: str, keep: Callable[[Redriven | Purged], None]) -> Iterator[Told]:
    """Gives what to tell of a run; ``keep`` gets the account each time."""
    with _bar() as bar:
        task = bar.add_task(name, total=None, counts="")

        def told(account: Redriven | Purged, seen: int, total: int | None) -> None:
            keep(account)
            counts = f"{account.matched} matched"
            if isinstance(account, Redriven):
                counts = f"{account.redriven} redriven"
                counts += f", {account.failed} failed" if account.failed else ""
                counts += f", {account.refailed} died again" if account.refailed else ""
            bar.update(task, completed=seen, total=total, counts=counts)

        yield told
