"""``atleastonce run``: the consumers of a service, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from atleastonce.cli.errors import Traceback
from atleastonce.cli.loader import load_service
from atleastonce.cli.output import log_to_stderr, note
from atleastonce.cli.target import NoWait
from atleastonce.observe.http import StatusServer
from atleastonce.service import Service
from atleastonce.serving import run as run_to_the_end


class LogLevel(enum.StrEnum):
    """How much the library says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    app: Annotated[str, typer.Argument(metavar="MODULE:SERVICE", help="Where the service is, like app:service.")],
    broker: Annotated[str | None, typer.Option(help="Broker URL, instead of the service's own and ALO_BROKER.")] = None,
    no_wait: NoWait = False,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Tell the status there: /status, /healthz, /readyz, /metrics."),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What the library logs.")] = LogLevel.INFO,
    traceback: Traceback = False,
) -> None:
    """Run a service's consumers until SIGTERM or Ctrl-C; then let the handlers end, and leave.

    A second signal ends the drain. What had not started or not ended is delivered again.
    """
    log_to_stderr(log_level.upper())
    service = load_service(app)
    if http is None:
        service.run(url=broker, no_wait=no_wait)
    else:
        run_to_the_end(_told(service, StatusServer(service, http), broker, no_wait=no_wait))
    note(f"service {service.name}: stopped")


async def _told(service: Service, status: StatusServer, broker: str | None, *, no_wait: bool) -> None:
    async with status:
        await service.serve(url=broker, no_wait=no_wait, tune_gc=True)
