"""The commands of ``atleastonce outbox``: relay, status, list, redrive, discard."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.live import Live
from rich.text import Text

from atleastonce.broker import Broker, connect
from atleastonce.cli.errors import DONE, PROBLEM, Problem, Terminated, Traceback, one_line
from atleastonce.cli.output import console, log_to_stderr, note, print_json
from atleastonce.cli.run import LogLevel
from atleastonce.cli.signals import gracefully, interruptible
from atleastonce.cli.target import BrokerOption, NoWait, broker_url
from atleastonce.durations import readable
from atleastonce.engine import collector
from atleastonce.engine.backoff import Backoff
from atleastonce.errors import ConfigurationError, StoreUnavailable
from atleastonce.patterns.outbox import Relay, RelayOptions
from atleastonce.stores import OutboxStats, OutboxStore, ParkedRow, open_store

T = TypeVar("T")

app = typer.Typer(help="Outbox: relay, status, list, redrive, discard.", no_args_is_help=False, rich_markup_mode=None)

StoreArgument = Annotated[
    str,
    typer.Argument(metavar="STORE_URL", envvar="ALO_STORE", help="The database, like postgresql://localhost/shop."),
]
Prefix = Annotated[str, typer.Option("--prefix", help="With which the names of its tables begin.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="This message. May be repeated.")]

_STOP_SECONDS = 10.0
_PAUSES = Backoff("200ms", factor=2, maximum="5s")
_SHOW_SECONDS = 0.25


class Relayed(msgspec.Struct, frozen=True):
    """The account of one relay."""

    published: int
    repeated: int
    parked: int
    waiting: int | None
    seconds: float


def outbox_store(url: str, prefix: str, *, create: bool = False) -> OutboxStore:
    """The store, not yet open.

    Raises:
        ConfigurationError: its database cannot be an outbox.
    """
    store = open_store(url)
    if isinstance(store, OutboxStore):
        store = open_store(url, {"prefix": prefix, "create": create})
    if not isinstance(store, OutboxStore):
        raise ConfigurationError(f"{store!r} has no outbox; give the URL of a PostgreSQL, MySQL or SQLite database")
    return store


@app.command("relay")
def relay(
    store: StoreArgument,
    broker: BrokerOption = None,
    prefix: Prefix = "alo",
    batch: Annotated[int, typer.Option(help="Messages in one confirmed publish.")] = 500,
    poll: Annotated[str, typer.Option(help="The longest wait between two looks at an empty outbox.")] = "500ms",
    lease: Annotated[str, typer.Option(help="For how long a dead relay's rows wait for another one.")] = "15s",
    blocking: Annotated[bool, typer.Option("--blocking", help="Later rows of a parked row's key wait for it.")] = False,
    unordered: Annotated[bool, typer.Option("--unordered", help="Rows of one key may leave together.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Make the tables where they are missing.")] = False,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when nothing is ready any more.")] = False,
    as_json: Json = False,
    no_wait: NoWait = False,
    log_level: Annotated[LogLevel, typer.Option(help="What the library logs.")] = LogLevel.WARNING,
    traceback: Traceback = False,
) -> int:
    """Publish what committed transactions left in an outbox, until SIGTERM or Ctrl-C; then end what is under way.

    Any number may run: they share the work, and keep the order of each key. Exit code 1 if rows were parked meanwhile.
    """
    log_to_stderr(log_level.upper())
    options = RelayOptions(batch=batch, poll=poll, lease=lease, blocking=blocking, ordered=not unordered)
    target = outbox_store(store, prefix, create=create)
    connection = connect(broker_url(broker), waiting=note, wait=0 if no_wait else None)
    begun = time.monotonic()

    async def work(stopping: asyncio.Event) -> Relay | None:
        if not await _opened(target, stopping, wait=not no_wait):
            return None
        async with target, connection:
            name = f"command on {socket.gethostname()}, process {os.getpid()}"
            running = Relay(target, connection.send, name=name, options=options)
            running.start()
            note(f"relaying {target!r} to {connection.url}; Ctrl-C ends")
            try:
                with collector.tuned():
                    await _watch(running, stopping, connection, until_empty=until_empty)
            finally:
                if not await running.stop(_STOP_SECONDS):
                    note("not all that was published could be removed: it will be published again, with the same ids")
            return running

    done, end = gracefully(work, "ending what is under way; once more to end at once")
    if done is None:  # told to stop before there was anything to do
        raise end or Terminated
    counts, lag = done.counts, done.status().lag
    account = Relayed(
        counts["published"],
        counts["repeated"],
        counts["parked"],
        lag.waiting if lag is not None else None,
        round(time.monotonic() - begun, 3),
    )
    if as_json:
        print_json(account)
    else:
        print(f"{account.published} published, {account.repeated} tried again, {account.parked} parked")
    if end is not None and not isinstance(end, KeyboardInterrupt) and until_empty:
        raise end
    return PROBLEM if account.parked else DONE


async def _opened(store: OutboxStore, stopping: asyncio.Event, *, wait: bool) -> bool:
    """Open ``store``, waiting for it; False if it was told to stop meanwhile."""
    for tried in itertools.count(1):
        try:
            await store.open()
        except StoreUnavailable as error:
            if not wait:
                raise
            pause = _PAUSES.wait(tried) or 0.0
            note(f"{one_line(error)}; trying again in {pause:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause)
            if stopping.is_set():
                return False
        else:
            break
    return True


async def _watch(running: Relay, stopping: asyncio.Event, broker: Broker, *, until_empty: bool) -> None:
    """Show what it does until it is told to stop, or has nothing more to do."""
    terminal = console(stderr=True)
    ends: list[asyncio.Task[Any]] = [asyncio.create_task(stopping.wait())]
    if until_empty:
        ends.append(asyncio.create_task(running.emptied()))
    try:
        with (
            Live(console=terminal, refresh_per_second=4, transient=True) if terminal.is_terminal else _Nothing() as live
        ):
            while True:
                done, _ = await asyncio.wait(ends, timeout=_SHOW_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
                live.update(Text(_line(running, broker)))
    finally:
        for end in ends:
            end.cancel()


class _Nothing:
    """Where nobody watches."""

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, _: Any) -> None: ...


def _line(running: Relay, broker: Broker) -> str:
    status = running.status()
    text = f"{broker.url}: {status.state}, {status.counts['published']} published, {status.in_flight} under way"
    if status.lag is not None:
        text += f", {_lag(status.lag)}"
    return text + (f" ({one_line(status.detail)})" if status.detail else "")


def _lag(stats: OutboxStats) -> str:
    text = f"{stats.waiting} waiting"
    if stats.oldest is not None:
        text += f", the oldest for {readable(stats.oldest)}"
    if stats.blocked:
        text += f", {stats.blocked} of them for a parked one of their key"
    return text + f", {stats.delayed} delayed, {stats.parked} parked"


@app.command("status")
def status(store: StoreArgument, prefix: Prefix = "alo", as_json: Json = False, traceback: Traceback = False) -> int:
    """How much waits in an outbox, for how long, and how many relays there are. Exit code 1 if something waits for people: parked
    rows, or rows and no relay."""
    stats = _ask(store, prefix, lambda outbox: outbox.outbox_stats())
    if as_json:
        print_json(stats)
    else:
        print(f"{_lag(stats)}, {stats.relays} relays")
        if stats.waiting and not stats.relays:
            note("no relay is running; start one with: atleastonce outbox relay, or a service with outbox=")
        if stats.parked:
            note("atleastonce outbox list shows what is parked, and why")
    return PROBLEM if stats.parked or (stats.waiting and not stats.relays) else DONE


@app.command("list")
def list_parked(
    store: StoreArgument,
    prefix: Prefix = "alo",
    max: Annotated[int, typer.Option("--max", min=1, help="At most so many.")] = 100,  # noqa: A002
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """What the broker refused for good, and why. Everything stays."""
    rows = _ask(store, prefix, lambda outbox: outbox.outbox_parked(max))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        _print_row(row)
    print(f"{len(rows)} parked" if len(rows) < max else f"{len(rows)} shown; --max shows more")


def _print_row(row: ParkedRow) -> None:
    key = "" if row.key is None else f" of key {row.key}" + (", which waits for it" if row.blocking else "")
    print(f"{row.id}  {row.destination}, {row.size} bytes{key}, parked {readable(row.parked_for)} ago")
    print(f"    {one_line(row.reason)}")


@app.command("redrive")
def redrive(
    store: StoreArgument,
    prefix: Prefix = "alo",
    id: Ids = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
    traceback: Traceback = False,
) -> int:
    """Let parked rows leave again, at their old places, once what was wrong is put right."""
    if bool(id) == all_:
        raise ConfigurationError("which rows? give --id, once or more, or --all")
    count = _ask(store, prefix, lambda outbox: outbox.outbox_redrive(None if all_ else id))
    return _report("redriven", count, id, as_json=as_json)


@app.command("discard")
def discard(
    store: StoreArgument,
    prefix: Prefix = "alo",
    id: Ids = None,
    as_json: Json = False,
    traceback: Traceback = False,
) -> int:
    """Delete parked rows for good: these messages are lost. What waited for them goes on."""
    if not id:
        raise ConfigurationError("which rows? give --id, once or more; atleastonce outbox list shows them")
    return _report("discarded", _ask(store, prefix, lambda outbox: outbox.outbox_discard(id)), id, as_json=as_json)


def _report(verb: str, count: int, ids: list[str] | None, *, as_json: bool) -> int:
    if as_json:
        print_json({verb: count})
    else:
        print(f"{count} {verb}")
    missing = len(set(ids or ())) - count
    if missing > 0:
        raise Problem(f"{missing} of the ids are not parked; atleastonce outbox list shows what is")
    return DONE


def _ask(url: str, prefix: str, question: Callable[[OutboxStore], Awaitable[T]]) -> T:
    store = outbox_store(url, prefix)

    async def ask() -> T:
        async with store:
            return await question(store)

    return interruptible(ask())
