"""``dlq redrive`` and ``purge``."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from atleastonce import wire
from atleastonce.channels import Queue
from atleastonce.cli.dlq import options as o
from atleastonce.cli.dlq.edit import check_edit, edited
from atleastonce.cli.dlq.running import rehearse, report, run_over
from atleastonce.cli.errors import DONE, PROBLEM, Traceback
from atleastonce.cli.output import note
from atleastonce.cli.signals import interruptible
from atleastonce.cli.target import BrokerOption, NoWait, PartsOption
from atleastonce.durations import per_second
from atleastonce.errors import ConfigurationError
from atleastonce.patterns.redrive import Purged, Redriven, Selection
from atleastonce.patterns.redrive.audit import Audit
from atleastonce.patterns.redrive.moves import MAX_REDRIVES

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")

Max = Annotated[int | None, typer.Option("--max", min=1, help="At most so many.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be meant, and do nothing.")]
AuditFile = Annotated[
    str | None, typer.Option("--audit", metavar="FILE", help="Append a JSON line for each message; - for stdout.")
]


def redrive(
    app: o.App = None,
    broker: BrokerOption = None,
    channel: o.ChannelOption = None,
    group: o.GroupOption = None,
    dlq: o.DlqOption = None,
    parts: PartsOption = None,
    error_type: o.ErrorTypes = None,
    fingerprint: o.Fingerprints = None,
    id: o.Ids = None,
    older_than: o.OlderThan = None,
    newer_than: o.NewerThan = None,
    header: o.HeaderFields = None,
    where: o.Where = None,
    dry_run: DryRun = False,
    rate: Annotated[str | None, typer.Option(help="At most so many, like 100/s.")] = None,
    max: Max = None,  # noqa: A002
    to: Annotated[
        str | None, typer.Option(metavar="QUEUE", help="Send the copies to this queue of the service instead.")
    ] = None,
    outside: Annotated[bool, typer.Option("--outside", help="QUEUE of --to need not be one of the service's.")] = False,
    edit: Annotated[
        str | None, typer.Option(metavar="ID", help="Redrive this one message with another body: from $EDITOR.")
    ] = None,
    body_file: Annotated[Path | None, typer.Option("--body-file", help="The body for --edit.")] = None,
    abort_if_refailed: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Stop when this share has died again, like 5%.")
    ] = None,
    max_redrives: Annotated[
        int, typer.Option("--max-redrives", min=1, max=wire.MAX_REDRIVES + 1, help="Leave what has come back so often.")
    ] = MAX_REDRIVES,
    native: Annotated[
        bool, typer.Option("--native", help="Let the broker move all of them, uncounted: SQS' own redrive.")
    ] = False,
    audit: AuditFile = None,
    as_json: o.Json = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Send dead letters back to the group that failed them, and to nobody else.

    Those that are there at the start; what fails again meanwhile waits for the next run. Killed at any moment it loses
    nothing: run it again. Exit code 1 if something could not be moved, or the run was stopped.
    """
    chosen = o.selection(error_type, fingerprint, _ids(id, edit), older_than, newer_than, header, where)
    share = None if abort_if_refailed is None else _share(abort_if_refailed)
    if rate is not None:
        per_second(rate)
    check_edit(edit, body_file, audit, dry_run=dry_run)
    if native:
        _check_native(
            {
                "a choice of messages": bool(chosen),
                "--max": max is not None,
                "--abort-if-refailed": share is not None,
                "--max-redrives": max_redrives != MAX_REDRIVES,
                "--audit": audit is not None,
                "--dry-run": dry_run,
            }
        )
    target = o.target(app, broker, channel, group, dlq, no_wait=no_wait, parts=parts)
    destination = None if to is None else _destination(to, target, app, outside=outside)
    if dry_run:
        account = interruptible(rehearse(target, chosen, max, max_redrives, as_json=as_json))
        report(account, as_json=as_json)
        return DONE
    change = None if edit is None else edited(target, edit, body_file)
    if change is None and edit is not None:
        note("the body is as it was; nothing was sent")
        return DONE

    async def run(letters: Any, audit: Audit | None, told: Any, stopping: asyncio.Event) -> Redriven:
        if native:
            whole: Redriven = await letters.redrive_natively(
                to=destination, rate=rate, progress=told, stopping=stopping
            )
            return whole
        moved: Redriven = await letters.redrive(
            chosen,
            to=destination,
            limit=max,
            rate=rate,
            max_redrives=max_redrives,
            abort_if_refailed=share,
            change=change,
            audit=audit,
            progress=told,
            stopping=stopping,
        )
        return moved

    account = run_over(target, audit, run, Redriven(), as_json=as_json)
    missing = len(chosen.ids) - account.matched - account.looped
    if chosen.ids and missing > 0:
        note(f"{missing} of the {len(chosen.ids)} messages are not among the dead letters")
    return PROBLEM if account.failed or account.stopped or (chosen.ids and missing > 0) else DONE


def purge(
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
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    max: Max = None,  # noqa: A002
    audit: AuditFile = None,
    as_json: o.Json = False,
    no_wait: NoWait = False,
    traceback: Traceback = False,
) -> int:
    """Remove dead letters for good. `export` them first."""
    chosen = o.selection(error_type, fingerprint, id, older_than, newer_than, header, where)
    target = o.target(app, broker, channel, group, dlq, no_wait=no_wait)
    if dry_run:
        report(interruptible(rehearse(target, chosen, max, None, as_json=as_json)), as_json=as_json, purging=True)
        return DONE
    if not yes:
        _ask(target, chosen)

    async def run(letters: Any, audit: Audit | None, told: Any, stopping: asyncio.Event) -> Purged:
        gone: Purged = await letters.purge(chosen, limit=max, audit=audit, progress=told, stopping=stopping)
        return gone

    account = run_over(target, audit, run, Purged(), as_json=as_json)
    return PROBLEM if account.stopped or account.purged < account.matched else DONE


def _ask(target: o.Target, chosen: Selection) -> None:
    names = target.names
    if not sys.stdin.isatty():
        raise ConfigurationError(f"purge removes messages of {names} for good: add --yes, or look first with --dry-run")
    which = "the dead letters that fit" if chosen else "ALL dead letters"
    typer.confirm(f"Remove {which} of {names} for good?", abort=True, err=True)


def _ids(id: list[str] | None, edit: str | None) -> list[str] | None:
    if edit is None:
        return id
    if id:
        raise ConfigurationError(f"--edit {edit} names the one message already; leave --id away")
    return [edit]


def _share(text: str) -> float:
    match = _SHARE.fullmatch(text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value < 1:
        raise ConfigurationError(f'--abort-if-refailed "{text}" is no share; write 5% or 0.05')
    return value


def _destination(name: str, target: o.Target, app: str | None, *, outside: bool) -> Queue[Any]:
    if name in target.topics:
        raise ConfigurationError(f"--to {name}: that is a topic, and every group of it would be notified; give a queue")
    if name not in target.queues and not outside:
        known = ", ".join(sorted(target.queues)) or "none"
        of = f"of {app}" if app else "known without MODULE:SERVICE"
        raise ConfigurationError(f"--to {name}: not one of the queues {of} ({known}); add --outside if it is meant")
    return Queue(name)


def _check_native(given: dict[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise ConfigurationError(f"--native lets the broker move everything as it is: it cannot do {option}")
