"""``atleastonce doctor``: what is installed, what answers, and what is known to go wrong together."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sqlite3
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from atleastonce.broker import connect
from atleastonce.brokers import NAMES
from atleastonce.brokers.addresses import variable
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, describe, one_line
from atleastonce.cli.output import console, print_json
from atleastonce.cli.target import only_to_look
from atleastonce.errors import NotFound
from atleastonce.urls import mask

# How long a broker has to answer. A broker that needs longer is there, but nobody would call it healthy.
_ANSWER_SECONDS = 10.0


# The client library that each extra brings.
_CLIENTS = {
    "kafka": "confluent-kafka",
    "rabbitmq": "pika",
    "sqs": "boto3",
    "nats": "nats-py",
    "pubsub": "google-cloud-pubsub",
    "redis": "redis",
    "postgres": "psycopg",
    "mysql": "aiomysql",
    "pydantic": "pydantic",
    "uvloop": "uvloop",
}

# Distributions that break one of ours when both are installed.
_INTRUDERS = {
    ("nats-core", "nats-py"): "both install files into the package nats; run: pip uninstall nats-core nats-jetstream, "
    'then pip install --force-reinstall "atleastonce[nats]"',
}


class Client(msgspec.Struct, frozen=True):
    """A client library: the installed version, or None; what to run where something is to be done."""

    extra: str
    distribution: str
    version: str | None
    problem: str | None
    remedy: str | None


class Reached(msgspec.Struct, frozen=True):
    """A broker address from the environment or the command line; ``problem`` is None where it answers.

    Attributes:
        there: False: it is a file that nobody has used yet; the first start makes it.
    """

    name: str
    url: str
    problem: str | None
    there: bool = True


class Report(msgspec.Struct, frozen=True):
    """All that doctor knows."""

    atleastonce: str
    python: str
    platform: str
    sqlite: str
    clients: list[Client]
    brokers: list[Reached]
    problems: list[str]


def doctor(
    broker: Annotated[str | None, typer.Option(help="Also ask the broker at this URL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    traceback: Traceback = False,
) -> int:
    """Say what is installed, which brokers answer, and what is known to go wrong together.

    Brokers are those of --broker, ALO_BROKER and ALO_KAFKA_URL, ALO_RABBITMQ_URL ... Exit code 1 if there is a problem;
    a client that is not installed is none.
    """
    report = asyncio.run(examine(addresses(broker)))
    if as_json:
        print_json(report)
    else:
        _print(report)
    return PROBLEM if report.problems else DONE


def addresses(given: str | None) -> dict[str, str]:
    """The addresses to ask, by where they come from."""
    variables = ["ALO_BROKER", *(variable(name) for name in NAMES)]
    found = {name: value for name in variables if (value := os.environ.get(name, "").strip())}
    return {"--broker": given, **found} if given else found


async def examine(urls: dict[str, str]) -> Report:
    """Look at everything, at all brokers at once."""
    clients = [_client(extra, name) for extra, name in _CLIENTS.items()]
    brokers = await asyncio.gather(*(_ask(name, url) for name, url in urls.items()))
    return Report(
        atleastonce=version("atleastonce"),
        python=platform.python_version(),
        platform=platform.platform(),
        sqlite=sqlite3.sqlite_version,
        clients=clients,
        brokers=list(brokers),
        problems=[
            *(f"{each.distribution} {each.version}: {each.problem}" for each in clients if each.problem),
            *(f"{each.name}: {each.problem}" for each in brokers if each.problem),
            *_combinations(),
        ],
    )


def _client(extra: str, distribution: str) -> Client:
    found = _installed(distribution)
    command = f'pip install "atleastonce[{extra}]"'
    if found is None:
        return Client(extra, distribution, None, None, command)
    bound = _lower_bound(distribution)
    if bound is not None and _numbers(found) < _numbers(bound):
        return Client(extra, distribution, found, f"older than {bound}; run: {command} --upgrade", command)
    return Client(extra, distribution, found, None, None)


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _lower_bound(distribution: str) -> str | None:
    """The oldest version that this package asks for, by its own metadata."""
    for line in requires("atleastonce") or ():
        if match := re.match(rf"{re.escape(distribution)}(?:\[[^\]]*\])?\s*>=\s*([0-9.]+)", line):
            return match[1]
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


async def _ask(name: str, url: str) -> Reached:
    shown = mask(url)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS), only_to_look(connect(url, wait=0)):
            return Reached(name, shown, None)
    except NotFound:
        return Reached(name, shown, None, there=False)
    except TimeoutError:
        return Reached(name, shown, f"{shown} does not answer within {_ANSWER_SECONDS:.0f} s")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return Reached(name, shown, one_line(describe(error)[0]))


def _combinations() -> Iterator[str]:
    """What is known to go wrong together."""
    from atleastonce.adapters.sqlite.schema import MINIMUM_SQLITE

    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        oldest = ".".join(map(str, MINIMUM_SQLITE))
        yield f"SQLite {sqlite3.sqlite_version}: sqlite:// needs {oldest} or newer; use a newer Python build"
    for (intruder, ours), why in _INTRUDERS.items():
        if (found := _installed(intruder)) is not None and _installed(ours) is not None:
            yield f"{intruder} {found} beside {ours}: {why}"


def _print(report: Report) -> None:
    out = console()
    out.print(
        f"atleastonce {report.atleastonce}, Python {report.python}, SQLite {report.sqlite}, {report.platform}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("client", "installed", "to install"):
        table.add_column(title)
    for client in report.clients:
        table.add_row(client.distribution, client.version or "no", client.remedy or "")
    out.print(table)
    if report.brokers:
        for each in report.brokers:
            state = "PROBLEM" if each.problem else "answers" if each.there else "no file yet"
            out.print(f"{each.name}  {each.url}  {state}", soft_wrap=True)
    else:
        out.print("no broker named: give --broker, or set ALO_BROKER")
    for problem in report.problems:
        out.print(f"problem: {problem}", soft_wrap=True)
    out.print("no problem found" if not report.problems else f"{len(report.problems)} problems found")
