"""``dlq redrive`` and ``purge``."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from atleastonce.channels import Queue
from atleastonce.cli.dlq import options as o
from atleastonce.cli.dlq.look import counted, print_groups
from atleastonce.cli.dlq.progress import moving
from atleastonce.cli.errors import DONE, PROBLEM, Problem, Traceback, one_line
from atleastonce.cli.output import note, print_json
from atleastonce.cli.signals import gracefully, interruptible
from atleastonce.cli.target import BrokerOption, NoWait
from atleastonce.durations import per_second
from atleastonce.errors import AtLeastOnceError, ConfigurationError
from atleastonce.patterns.redrive import Letter, Purged, Redriven, Selection
from atleastonce.patterns.redrive.audit import Audit, AuditLine
from atleastonce.patterns.redrive.letters import NO_JSON
from atleastonce.patterns.redrive.moves import MAX_REDRIVES

_REMARK = "ending after this batch; once more to end at once"
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
        int, typer.Option("--max-redrives", min=1, max=1000, help="Leave what has come back so often.")
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
    _check_edit(edit, body_file, audit, dry_run=dry_run)
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
    target = o.target(app, broker, channel, group, dlq, no_wait=no_wait)
    destination = None if to is None else _destination(to, target, app, outside=outside)
    if dry_run:
        account = interruptible(_rehearse(target, chosen, max, max_redrives, as_json=as_json))
        _report(account, as_json=as_json)
        return DONE
    change = None if edit is None else _edited(target, edit, body_file)
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

    account = _run(target, audit, run, Redriven(), as_json=as_json)
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
        _report(interruptible(_rehearse(target, chosen, max, None, as_json=as_json)), as_json=as_json, purging=True)
        return DONE
    if not yes:
        _ask(target, chosen)

    async def run(letters: Any, audit: Audit | None, told: Any, stopping: asyncio.Event) -> Purged:
        gone: Purged = await letters.purge(chosen, limit=max, audit=audit, progress=told, stopping=stopping)
        return gone

    account = _run(target, audit, run, Purged(), as_json=as_json)
    return PROBLEM if account.stopped else DONE


def _ask(target: o.Target, chosen: Selection) -> None:
    names = target.names
    if not sys.stdin.isatty():
        raise ConfigurationError(f"purge removes messages of {names} for good: add --yes, or look first with --dry-run")
    which = "the dead letters that fit" if chosen else "ALL dead letters"
    typer.confirm(f"Remove {which} of {names} for good?", abort=True, err=True)


# ------------------------------------------------------------------------------------------------- running


def _run(target: o.Target, audit: str | None, run: Any, nothing: Any, *, as_json: bool) -> Any:
    """Run over every source, print the account whatever happens, and return it."""
    done: list[Any] = []
    current = [nothing]

    async def all_of_them(stopping: asyncio.Event) -> None:
        async with target.make() as opened:
            with _audited(audit) as told_audit:
                for letters in target.letters(opened):
                    current[0] = nothing
                    with moving(letters.queue.name, lambda account: current.__setitem__(0, account)) as told:
                        current[0] = await run(letters, told_audit, told, stopping)
                    done.append(current[0])
                    current[0] = nothing
                    if stopping.is_set():
                        return

    try:
        _, told = gracefully(all_of_them, _REMARK)
    except (AtLeastOnceError, KeyboardInterrupt, OSError):
        so_far = _sum([*done, current[0]])
        if so_far.matched:
            _report(so_far, as_json=as_json, purging=isinstance(nothing, Purged))
            note("what was not moved is still there; run it again")
        raise
    account = _sum(done or [nothing])
    _report(account, as_json=as_json, purging=isinstance(nothing, Purged))
    if told is not None:
        raise told
    return account


def _sum(accounts: Sequence[Any]) -> Any:
    first = accounts[0]
    values: dict[str, Any] = {}
    for name in first.__struct_fields__:
        found = [getattr(account, name) for account in accounts]
        if name == "stopped":
            values[name] = "; ".join(dict.fromkeys(filter(None, found)))
        else:
            values[name] = any(found) if name == "dry_run" else sum(found)
    return type(first)(**values)


async def _rehearse(
    target: o.Target, chosen: Selection, limit: int | None, max_redrives: int | None, *, as_json: bool
) -> Redriven:
    """What a run would move, with a table of it."""
    accounts: list[Redriven] = []
    groups: list[Any] = []
    async with target.make() as opened:
        for letters in target.letters(opened):
            groups += await counted(letters, chosen)
            if max_redrives is None:
                gone = await letters.purge(chosen, dry_run=True, limit=limit)
                accounts.append(Redriven(gone.matched, 0, gone.skipped, dry_run=True, seconds=gone.seconds))
            else:
                found = await letters.redrive(chosen, dry_run=True, limit=limit, max_redrives=max_redrives)
                accounts.append(found)
    if groups and not as_json:
        print_groups(groups)
    account: Redriven = _sum(accounts)
    return account


def _report(account: Redriven | Purged, *, as_json: bool, purging: bool = False) -> None:
    """The fixed shape as JSON, or a sentence."""
    names = ["matched", "redriven", "skipped", "failed", "refailed", "dry_run", "seconds"]
    if purging:
        names = ["matched", "purged", "skipped", "dry_run", "seconds"]
    looped = getattr(account, "looped", 0)
    if looped:
        note(f"{looped} stay: they were redriven too often already (--max-redrives)")
    if account.stopped:
        note(one_line(f"stopped: {account.stopped}"))
    if as_json:
        print_json({name: getattr(account, name, 0) for name in names})
        return
    if account.dry_run:
        print(
            f"{account.matched} would be {'purged' if purging else 'redriven'}, {account.skipped} would stay; nothing was done"
        )
        return
    if isinstance(account, Purged):
        print(f"{account.purged} purged, {account.skipped} stay ({account.seconds:.1f} s)")
        return
    again = f", {account.refailed} died again" if account.refailed else ""
    failed = f", {account.failed} could not be moved" if account.failed else ""
    print(f"{account.redriven} redriven{again}{failed}, {account.skipped} stay ({account.seconds:.1f} s)")


@contextmanager
def _audited(path: str | None) -> Iterator[Audit | None]:
    """Appends to ``path``; what was told is on the disk when it returns."""
    if path is None:
        yield None
        return
    if path == "-":

        def show(lines: Sequence[AuditLine]) -> None:
            for line in lines:
                print_json(line)

        yield show
        return
    with Path(path).open("ab") as file:

        def write(lines: Sequence[AuditLine]) -> None:
            file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

        yield write


# ------------------------------------------------------------------------------------------------- arguments


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


def _check_edit(edit: str | None, body_file: Path | None, audit: str | None, *, dry_run: bool) -> None:
    if body_file is not None and edit is None:
        raise ConfigurationError("--body-file is the body for --edit ID; which message?")
    if edit is None:
        return
    if audit is None or audit == "-":
        raise ConfigurationError("--edit keeps the original body in the audit: give it a file with --audit FILE")
    if dry_run:
        raise ConfigurationError("--edit and --dry-run exclude each other; `dlq show --id` shows the message")


def _check_native(given: dict[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given:
            raise ConfigurationError(f"--native lets the broker move everything as it is: it cannot do {option}")


def _edited(target: o.Target, id: str, body_file: Path | None) -> Callable[[Letter], bytes] | None:
    """What gives the new body; None if it is the old one."""
    letter = interruptible(_find(target, id))
    old = letter.body
    new = body_file.read_bytes() if body_file is not None else _from_editor(old)
    if new == old:
        return None
    if letter.json is not NO_JSON:
        try:
            msgspec.json.decode(new)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(
                f"the body of {id} was JSON and is none any more ({error}); nothing was sent"
            ) from None
    return lambda _: new


async def _find(target: o.Target, id: str) -> Letter:
    async with target.make() as opened:
        for letters in target.letters(opened):
            async with aclosing(letters.letters(Selection(id=[id]))) as found:
                async for letter in found:
                    return letter
    raise Problem(f"{id} is not among the dead letters")


def _from_editor(body: bytes) -> bytes:
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        body.decode()
    except UnicodeDecodeError:
        raise ConfigurationError("the body is no text; change it elsewhere and give it with --body-file") from None
    with tempfile.TemporaryDirectory(prefix="atleastonce-") as folder:
        file = Path(folder, "body.json")
        file.write_bytes(body)
        try:
            ended = subprocess.run([*editor, str(file)], check=False)  # noqa: S603 - the user's own editor
        except OSError as error:
            raise ConfigurationError(
                f"the editor {editor[0]} does not start ({error.strerror}); set EDITOR, or give --body-file"
            ) from None
        if ended.returncode:
            raise Problem(f"{editor[0]} ended with {ended.returncode}; nothing was sent")
        new = file.read_bytes()
    # Editors end the last line; the message had no such line end.
    return new[:-1] if new == body + b"\n" or (new.endswith(b"\n") and not body.endswith(b"\n")) else new
