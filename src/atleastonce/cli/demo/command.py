"""``atleastonce demo``: the tour."""

from __future__ import annotations

import random
import secrets
from pathlib import Path
from typing import Annotated

import typer

from atleastonce.cli.demo.crew import WorkerFailed
from atleastonce.cli.demo.orders import SUPPLIED, Orders, read_orders
from atleastonce.cli.demo.publish import repeated
from atleastonce.cli.demo.screen import display, show_account
from atleastonce.cli.demo.settings import tuned
from atleastonce.cli.demo.tour import BILLING, Tour
from atleastonce.cli.demo.workplace import workplace
from atleastonce.cli.errors import DONE, PROBLEM, Traceback
from atleastonce.cli.output import console, note, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import NoWait

# When the one kill of the ordinary tour happens, as a share of the story.
MIDDLE = 0.36
_SHOWN_PROBLEMS = 10


def demo(
    broker: Annotated[str | None, typer.Option(help="Broker URL. Default: an SQLite file of its own.")] = None,
    messages: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="How many orders. Default: all of the file.")
    ] = None,
    input: Annotated[  # noqa: A002 - the option's name
        Path, typer.Option("--input", metavar="FILE", help="Orders as JSON lines.", show_default=False)
    ] = SUPPLIED,
    chaos: Annotated[bool, typer.Option("--chaos", help="Kill ten processes, at random moments.")] = False,
    kills: Annotated[int | None, typer.Option(min=0, max=1000, help="Kill so many, at random moments.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random moments; printed, to repeat a run.")] = None,
    no_wait: NoWait = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as one JSON object, last.")] = False,
    traceback: Traceback = False,
) -> int:
    """An order pipeline in which things go wrong, and an account of every message at its end.

    Orders are published to a topic that two services read, two processes each. Some calls fail and are retried, some
    bodies are broken, every 50th order is published twice, a process is killed (kill -9) in the middle, and a bug sends
    some orders to the dead letters, from which they are redriven once it is fixed. Exit code 1 if a message is lost, or
    a line of the input is bad.
    """
    orders = read_orders(input)
    _report(orders)
    lines = repeated(orders.lines, messages if messages is not None else len(orders.lines))
    seed = seed if seed is not None else secrets.randbelow(1_000_000)
    dice = random.Random(seed)
    random_kills = 10 if kills is None and chaos else kills
    moments = [MIDDLE] if random_kills is None else sorted(dice.random() for _ in range(random_kills))
    if random_kills is not None:
        note(f"seed {seed}: kills at {', '.join(f'{moment:.0%}' for moment in moments) or 'no moment'}")
    terminal = console(stderr=as_json)
    with workplace() as folder, display(terminal) as screen:
        tour = Tour(
            tuned(broker or f"sqlite:///{folder.path}/queue.db"),
            lines,
            kills=moments,
            dice=dice,
            only=BILLING if random_kills is None else None,
            screen=screen,
            folder=folder.path,
            cleanup=broker is not None,
            no_wait=no_wait,
        )
        try:
            account = interruptible(tour.run())
        except WorkerFailed:
            folder.keep = True
            raise
        folder.keep = account.lost > 0
    show_account(terminal, account)
    if as_json:
        print_json(account.report())
    return PROBLEM if account.lost or orders.problems else DONE


def _report(orders: Orders) -> None:
    for problem in orders.problems[:_SHOWN_PROBLEMS]:
        note(problem)
    if len(orders.problems) > _SHOWN_PROBLEMS:
        note(f"... and {len(orders.problems) - _SHOWN_PROBLEMS} more")
    if orders.problems:
        note(f"bad lines left out: {len(orders.problems)}; the other {len(orders.lines)} go on")
