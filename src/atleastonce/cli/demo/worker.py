"""One consumer process of the demo: ``python -m atleastonce.cli.demo.worker``, its assignment as a line of JSON on stdin.

Stdin and not arguments, because a broker's URL holds a password and arguments are for everyone to see. Stdin stays open
and is watched: its end means that the demo is gone, and then the process ends too, however the demo came to its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from pathlib import Path

import msgspec

from atleastonce.cli.demo.ledger import Ledger
from atleastonce.cli.demo.services import billing, orders_topic, shipping
from atleastonce.service import Service

_ORPHANED = 70


class Assignment(msgspec.Struct, frozen=True):
    """What a process is to do.

    Attributes:
        service: ``"billing"`` or ``"shipping"``.
        broker: the URL.
        suffix: of the topic's name.
        ledger: the service's file.
        fixed: whether to run the release without the bug.
    """

    service: str
    broker: str
    suffix: str
    ledger: str
    fixed: bool


def build(service: str, suffix: str, ledger: Ledger, *, fixed: bool) -> Service:
    """The service of that name."""
    orders = orders_topic(suffix)
    return billing(orders, ledger, fixed=fixed) if service == "billing" else shipping(orders, ledger)


def end_with_parent() -> None:
    """End this process once stdin does. In a thread of its own, for a process that hangs must end as well."""

    def watch() -> None:
        # os.read and not sys.stdin, whose lock this thread would hold when the interpreter shuts down.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(_ORPHANED)  # as abruptly as the demo went; nothing is lost by it, which is the point of the demo

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Assignment)
    end_with_parent()
    ledger = Ledger(Path(task.ledger))
    service = build(task.service, task.suffix, ledger, fixed=task.fixed)
    try:
        asyncio.run(service.serve(url=task.broker))
    finally:
        ledger.close()


if __name__ == "__main__":
    main()
