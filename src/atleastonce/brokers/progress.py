"""What the user sees while brokers are fetched and started: bars on a terminal, otherwise one line per step."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

POLL_SECONDS = 0.2


class Progress(Protocol):
    """Receives steps; called from several threads. Sizes are bytes; `total` is an estimate, `None` where unknown."""

    def step(self, name: str, text: str, done: int | None = None, total: int | None = None) -> None: ...

    def finished(self, name: str, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def step(self, name: str, text: str, done: int | None = None, total: int | None = None) -> None:
        pass

    def finished(self, name: str, text: str) -> None:
        pass


class Lines:
    """One line on `stream` whenever a broker enters another step: for logs and CI."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._last: dict[str, str] = {}
        self._lock = threading.Lock()

    def step(self, name: str, text: str, done: int | None = None, total: int | None = None) -> None:
        with self._lock:
            if self._last.get(name) == text:
                return
            self._last[name] = text
            size = f" (about {total / 1e6:.0f} MB)" if total else ""
            self._stream.write(f"{name}: {text}{size}\n")
            self._stream.flush()

    def finished(self, name: str, text: str) -> None:
        self.step(name, text)


class Bars:
    """A live bar per broker, with sizes."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            SpinnerColumn(finished_text=" "),
            TextColumn("[bold]{task.fields[broker]:<10}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[size]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, name: str, text: str, done: int | None = None, total: int | None = None) -> None:
        from rich.progress import TaskID

        # The total is an estimate: a download that grows past it moves the goal, never beyond 100 %.
        goal = None if total is None else max(total, done or 0)
        size = f"{(done or 0) / 1e6:.0f}" + (f"/{goal / 1e6:.0f} MB" if goal else " MB") if done else ""
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = (self._bars.add_task(text, broker=name, size="", total=None), text)
            task, before = self._tasks[name]
            if text != before:  # another step: rich keeps an old total where it is given none
                self._bars.reset(TaskID(task), description=text, total=goal)
                self._tasks[name] = (task, text)
            self._bars.update(TaskID(task), completed=done or 0, total=goal, size=size)

    def finished(self, name: str, text: str) -> None:
        from rich.progress import TaskID

        self.step(name, text)
        with self._lock:
            self._bars.update(TaskID(self._tasks[name][0]), total=1, completed=1)


@contextlib.contextmanager
def shown(progress: Progress | bool | None) -> Iterator[Progress]:
    """The progress display for one call: `False` is silent, `True` or `None` chooses by whether stderr is a terminal."""
    if progress is False:
        yield Silent()
    elif progress is None or progress is True:
        if sys.stderr.isatty() and not os.environ.get("CI") and importlib.util.find_spec("rich"):
            with Bars() as bars:
                yield bars
        else:
            yield Lines()
    else:
        yield progress


@contextlib.contextmanager
def watched(progress: Progress, name: str, text: str, folder: Path, total: int | None = None) -> Iterator[None]:
    """Report how `folder` grows while the body runs: the tools that download (pip, apt, go) speak no common language,
    but all of them write files."""
    progress.step(name, text, 0, total)
    over = threading.Event()

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            progress.step(name, text, size_of(folder), total)

    thread = threading.Thread(target=poll, name=f"progress-{name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def size_of(folder: Path) -> int:
    """Bytes in the files below `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                total += (Path(parent) / file).lstat().st_size
    return total


def wait_until(deadline: float) -> bool:
    """Sleep a moment; False once `deadline` (of `time.monotonic`) has passed."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        return False
    time.sleep(min(0.05, remaining))
    return True
