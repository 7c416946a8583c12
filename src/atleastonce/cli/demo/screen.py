"""What the person sees: a live screen on a terminal, plain lines elsewhere, and the closing account."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atleastonce.cli.demo.account import ENDINGS, Account
from atleastonce.cli.demo.watch import View

_EVENTS = 8
_BAR = 24
_PLAIN_SECONDS = 2.0

_NAMES = {
    "done": "done",
    "done_after_retry": "done after retry",
    "redriven": "redriven, then done",
    "discarded": "discarded by decision",
    "dead": "still dead",
    "lost": "lost",
}


class Display(Protocol):
    """A screen as a context manager: entered before the run, left after it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def event(self, text: str) -> None: ...

    def show(self, view: View) -> None: ...


def display(console: Console) -> Display:
    """The display that suits where ``console`` writes."""
    return LiveScreen(console) if console.is_terminal else PlainLines(console)


class PlainLines:
    """Events as they happen, and how it stands every other second: for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._since = time.monotonic()
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def event(self, text: str) -> None:
        self._print(text)

    def show(self, view: View) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_SECONDS
            parts = "; ".join(
                f"{part.name} done {part.totals.messages}, waiting {part.waiting + part.in_flight}, "
                f"for a retry {part.retrying}, dead {part.dead}"
                for part in view.parts
            )
            self._print(f"published {view.published} of {view.total}; {parts}")

    def _print(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._since:6.1f} s  {text}", soft_wrap=True)


class LiveScreen:
    """Bars that move, and the last events below them."""

    def __init__(self, console: Console) -> None:
        self._since = time.monotonic()
        self._events: deque[tuple[str, str]] = deque(maxlen=_EVENTS)
        self._view: View | None = None
        self._live = Live(console=console, refresh_per_second=10, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, text: str) -> None:
        self._events.append((f"{time.monotonic() - self._since:6.1f} s", text))

    def show(self, view: View) -> None:
        self._view = view

    def _render(self) -> RenderableType:
        events = Table.grid(padding=(0, 1))
        for text in self._events:
            events.add_row(*text)
        if self._view is None:
            return events
        return Group(_standing(self._view), Text(), events)


def _standing(view: View) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("", "", "done", "after retry", "waiting", "for a retry", "dead"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    table.add_row("published", _bar(view.published, view.total), str(view.published))
    for part in view.parts:
        table.add_row(
            part.name,
            _bar(part.accounted, view.total),
            str(part.totals.messages),
            str(part.totals.done_after_retry),
            str(part.waiting + part.in_flight),
            str(part.retrying),
            str(part.dead),
        )
    return table


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(1, total), completed=min(done, total), width=_BAR)


def account_table(account: Account) -> Table:
    """The closing account: every message in one row of the first column, and once per service beside it."""
    table = Table(title=f"{account.published} messages, each in one row", title_justify="left", show_footer=True)
    table.add_column("ending", footer="published")
    table.add_column("messages", justify="right", footer=str(account.published))
    for service in account.services:
        table.add_column(service.name, justify="right", footer=str(sum(service.endings.values())))
    for ending in ENDINGS:
        style = "bold red" if ending == "lost" and account.lost else None
        table.add_row(
            _NAMES[ending],
            str(account.endings[ending]),
            *(str(service.endings[ending]) for service in account.services),
            style=style,
        )
    return table


def show_account(console: Console, account: Account) -> None:
    """Print the account and what it says in words."""
    console.print(account_table(account))
    console.print(
        f"{account.duplicates_suppressed} deliveries of what was done already had no effect"
        f" ({', '.join(f'{s.name} {s.suppressed}' for s in account.services)}); {account.unconfirmed} publishes unconfirmed",
        soft_wrap=True,
    )
    for service in account.services:
        if service.lost:
            console.print(f"lost by {service.name}: {', '.join(sorted(service.lost)[:20])}", style="bold red")
    verdict = f"LOST {account.lost} messages" if account.lost else "nothing lost"
    console.print(f"{verdict}, {account.seconds:.1f} s, {account.broker}", style="bold", soft_wrap=True)
