"""``atleastonce explain``: each handler's guarantee in words."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from atleastonce.cli.errors import DONE, Traceback, one_line
from atleastonce.cli.loader import load_service
from atleastonce.cli.output import log_to_stderr, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import NoWait
from atleastonce.explain import Explanation, lines


class Report(msgspec.Struct, frozen=True):
    """What the handlers of a service may see. ``live``: whether the broker was asked for its settings."""

    service: str
    broker: str
    live: bool
    handlers: list[Explanation]


def explain(
    app: Annotated[str, typer.Argument(metavar="MODULE:SERVICE", help="Where the service is, like app:service.")],
    broker: Annotated[str | None, typer.Option(help="Broker URL, instead of the service's own and ALO_BROKER.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask the broker for its settings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Say what each handler of a service may see: how often, in what order, when it is tried again, where a message ends, and what
    each crash repeats. Asks no broker, unless --live.
    """
    log_to_stderr("WARNING")
    service = load_service(app)
    handlers = interruptible(service.explain(url=broker, live=live, no_wait=no_wait))
    address = service.make_broker(broker).url
    if as_json:
        print_json(Report(service.name, address, live, handlers))
        return DONE
    print(f"service {service.name} on {one_line(address)}")
    for handler in handlers:
        print()
        for line in lines(handler):
            print(line)
    return DONE
