"""What ``dlq redrive`` and ``purge`` have in common: over every source, with progress, an audit and an account of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from atleastonce import wire
from atleastonce.cli.dlq import options as o
from atleastonce.cli.dlq.look import counted, print_groups
from atleastonce.cli.dlq.progress import moving
from atleastonce.cli.errors import one_line
from atleastonce.cli.output import note, print_json
from atleastonce.cli.signals import gracefully
from atleastonce.engine.collector import tuned
from atleastonce.errors import AtLeastOnceError
from atleastonce.patterns.redrive import Purged, Redriven, Selection
from atleastonce.patterns.redrive.audit import Audit, AuditLine

_REMARK = "ending after this batch; once more to end at once"


def run_over(target: o.Target, audit: str | None, run: Any, nothing: Any, *, as_json: bool) -> Any:
    """Run over every source, print the account whatever happens, and return it."""
    done: list[Any] = []
    current = [nothing]

    async def all_of_them(stopping: asyncio.Event) -> None:
        async with target.make() as opened:
            # The process is the command's own: letters are many containers each, and what came before them stays.
            with tuned(), _audited(audit) as told_audit:
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
            report(so_far, as_json=as_json, purging=isinstance(nothing, Purged))
            note("what was not moved is still there; run it again")
        raise
    account = _sum(done or [nothing])
    report(account, as_json=as_json, purging=isinstance(nothing, Purged))
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


async def rehearse(
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


def report(account: Redriven | Purged, *, as_json: bool, purging: bool = False) -> None:
    """The fixed shape as JSON, or a sentence."""
    names = ["matched", "redriven", "skipped", "failed", "refailed", "dry_run", "seconds"]
    if purging:
        names = ["matched", "purged", "skipped", "dry_run", "seconds"]
    looped = getattr(account, "looped", 0)
    if looped:
        most = wire.MAX_REDRIVES + 1
        note(
            f"{looped} stay: they were redriven too often already, as they say (--max-redrives; {most} takes every one)"
        )
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
        left = account.matched - account.purged
        failed = f", {left} could not be taken out" if left else ""
        print(f"{account.purged} purged{failed}, {account.skipped} stay ({account.seconds:.1f} s)")
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
