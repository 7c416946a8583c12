"""``dlq list``, ``show`` and ``export``: everything stays where it is."""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer

from atleastonce.cli.dlq import options as o
from atleastonce.cli.dlq.progress import reading
from atleastonce.cli.errors import DONE, PROBLEM, Traceback, one_line
from atleastonce.cli.output import json_line, note, print_json
from atleastonce.cli.signals import interruptible
from atleastonce.cli.tail import as_object, field_of, printable
from atleastonce.cli.target import BrokerOption, NoWait
from atleastonce.errors import NotFound
from atleastonce.patterns.redrive import DeadLetters, Group, Letter, Selection
from atleastonce.wire import PREFIX

_SHOWN = 10
_MESSAGE_WIDTH = 100


def list_groups(
    app: o.App = None,
    broker: BrokerOption = None,
    channel: o.ChannelOption = None,
    group: o.GroupOption = None,
    dlq: o.DlqOption = None,
    error_type: o.ErrorTypes = None,
    fingerprint: o.Fingerprints = None,
    id: o.Ids = None,
    older_than: o.OlderThan = None,
    newer_than: o.NewerThan = None,
    header: o.HeaderFields = None,
    where: o.Where = None,
    as_json: o.Json = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """What is dead and why: one row for each kind of failure, with how many there are. Everything stays."""
    chosen = o.selection(error_type, fingerprint, id, older_than, newer_than, header, where)
    target = o.target(app, broker, channel, group, dlq, no_wait=no_wait)
    groups, missing = interruptible(_groups(target, chosen))
    for problem in missing:
        note(one_line(problem))
    if as_json:
        print_json(groups)
    elif groups:
        print_groups(groups)
    else:
        print("no dead letters" + (" fit" if chosen else ""))
    return PROBLEM if missing else DONE


async def _groups(target: o.Target, chosen: Selection) -> tuple[list[Group], list[NotFound]]:
    groups: list[Group] = []
    missing: list[NotFound] = []
    async with target.make() as opened:
        for letters in target.letters(opened):
            try:
                groups += await counted(letters, chosen)
            except NotFound as error:
                missing.append(error)
    return groups, missing


async def counted(letters: DeadLetters, chosen: Selection) -> list[Group]:
    """Its groups, with a bar while it reads."""
    with reading(str(letters.queue.name), await letters.count()) as told:
        return await letters.groups(chosen, told)


def print_groups(groups: Sequence[Group]) -> None:
    """For a person: two lines for each."""
    for row in groups:
        source = row.channel if row.group is None else f"{row.channel}.{row.group}"
        message = f": {row.error_message[:_MESSAGE_WIDTH]}" if row.error_message else ""
        stage = f" ({row.stage})" if row.stage not in ("", "handler") else ""
        print(f"{source}  {row.count} x {row.error_type or '(nobody wrote why)'}{message}{stage}")
        since = "" if row.first_failed is None else f"{moment(row.first_failed)} to {moment(row.last_failed)}, "
        print(f"    {since}fingerprint {row.fingerprint}, example {row.example_id}")
    if groups:
        print(f"{sum(row.count for row in groups)} dead letters in {len(groups)} groups")


def moment(seconds: float | None) -> str:
    """A time as people write it."""
    if seconds is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (OverflowError, ValueError, OSError):  # from the wire: anything
        return "(no time)"


def show_letters(
    app: o.App = None,
    broker: BrokerOption = None,
    channel: o.ChannelOption = None,
    group: o.GroupOption = None,
    dlq: o.DlqOption = None,
    error_type: o.ErrorTypes = None,
    fingerprint: o.Fingerprints = None,
    id: o.Ids = None,
    older_than: o.OlderThan = None,
    newer_than: o.NewerThan = None,
    header: o.HeaderFields = None,
    where: o.Where = None,
    max: Annotated[int, typer.Option("--max", min=1, help="At most so many.")] = _SHOWN,  # noqa: A002
    as_json: o.Json = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Whole dead letters: body, headers, error, traceback. Everything stays. Exit code 1 if there is none that fits."""
    chosen = o.selection(error_type, fingerprint, id, older_than, newer_than, header, where)
    target = o.target(app, broker, channel, group, dlq, no_wait=no_wait)
    shown = interruptible(_each(target, chosen, max, lambda letter: _print(letter, as_json=as_json)))
    if not shown:
        note("no dead letters" + (" fit" if chosen else ""))
        return PROBLEM
    return DONE


async def _each(target: o.Target, chosen: Selection, limit: int | None, tell: Any) -> int:
    count = 0
    async with target.make() as opened:
        for letters in target.letters(opened):
            async with contextlib.aclosing(letters.letters(chosen)) as found:
                async for letter in _first(found, None if limit is None else limit - count):
                    tell(letter)
                    count += 1
    return count


async def _first(letters: AsyncGenerator[Letter], limit: int | None) -> AsyncGenerator[Letter]:
    left = limit
    while left is None or left > 0:
        try:
            yield await anext(letters)
        except StopAsyncIteration:
            return
        left = None if left is None else left - 1


def _print(letter: Letter, *, as_json: bool) -> None:
    if as_json:
        print_json(as_export(letter))
        return
    why = letter.obituary
    print(f"{letter.id}  {why.error_type or '(nobody wrote why)'}: {why.error_message}")
    facts = {
        "stage": why.stage,
        "attempts": "" if why.attempts is None else str(why.attempts),
        "from": "/".join(part for part in (why.origin, why.position) if part),
        "group": why.group,
        "first failed": moment(why.first_failed),
        "last failed": moment(why.last_failed),
        "service": " on ".join(part for part in (why.service, why.host) if part),
        "redrives": str(why.redrives) if why.redrives else "",
        "fingerprint": why.fingerprint,
        "written by": why.writer,
    }
    for name, value in facts.items():
        if value:
            print(f"  {name}: {value}")
    for line in why.traceback.splitlines():
        print(f"  | {line}")
    message = letter.message
    if message.key is not None:
        print(f"  key: {printable(message.key)}")
    for name, field in message.headers.items():
        if not name.startswith(PREFIX):  # ours were shown in words
            print(f"  {field_of(name)}: {field_of(field)}")
    print(f"  {printable(message.body)}\n")


def as_export(letter: Letter) -> dict[str, Any]:
    """A dead letter as JSON has it: the message as `tail` prints it, and ``dead``: why, in the same words on every broker."""
    why = msgspec.to_builtins(letter.obituary)
    del why["raw_traceback"]
    headers = [
        [name, {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value]
        for name, value in letter.message.headers.items()
    ]
    return {**as_object(letter.delivery), "headers": headers, "dead": {**why, "traceback": letter.obituary.traceback}}


def export(
    app: o.App = None,
    broker: BrokerOption = None,
    channel: o.ChannelOption = None,
    group: o.GroupOption = None,
    dlq: o.DlqOption = None,
    error_type: o.ErrorTypes = None,
    fingerprint: o.Fingerprints = None,
    id: o.Ids = None,
    older_than: o.OlderThan = None,
    newer_than: o.NewerThan = None,
    header: o.HeaderFields = None,
    where: o.Where = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file that does not exist yet; default: stdout.")
    ] = None,
    max: Annotated[int | None, typer.Option("--max", min=1, help="At most so many.")] = None,  # noqa: A002
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> None:
    """Dead letters as JSON, one object per line, with body, headers and error. Everything stays."""
    chosen = o.selection(error_type, fingerprint, id, older_than, newer_than, header, where)
    target = o.target(app, broker, channel, group, dlq, no_wait=no_wait)
    with _opened(output) as file:

        def write(letter: Letter) -> None:
            file.write(json_line(as_export(letter)))

        count = interruptible(_each(target, chosen, max, write))
    note(f"{count} exported; all stay")


@contextlib.contextmanager
def _opened(path: Path | None) -> Any:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    file: IO[bytes]
    with path.open("xb") as file:
        yield file
