"""The consumer processes of the demo: started, killed, replaced, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import msgspec

from atleastonce.cli.demo.worker import Assignment
from atleastonce.errors import AtLeastOnceError

# A drain gives back what has not started and ends what runs, which takes a moment. One that takes this long hangs.
_DRAIN_SECONDS = 30.0
_ABANDON_SECONDS = 3.0


class WorkerFailed(AtLeastOnceError):
    """A consumer process ended by itself."""


class Member:
    """One process."""

    def __init__(self, name: str, assignment: Assignment, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.assignment = assignment
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives.

        Not by ``process.send_signal``: that looks whether the child has ended, and takes its exit code from under asyncio.
        """
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:300] if lines else "it left no word"


class Crew:
    """All consumer processes of one run; logs go to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: dict[str, int] = {}
        self.members: list[Member] = []

    async def start(self, assignment: Assignment) -> Member:
        """Start one process."""
        number = self._numbers[assignment.service] = self._numbers.get(assignment.service, 0) + 1
        name = f"{assignment.service}-{number}"
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the current directory is the user's: a random.py in it is none of ours
                "-m",
                "atleastonce.cli.demo.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C at the terminal is for the demo, which ends its processes in order
            )
        member = Member(name, assignment, process, log)
        self.members.append(member)
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.write(msgspec.json.encode(assignment) + b"\n")
        with contextlib.suppress(ConnectionError):  # it died at once: `check` will say so
            await process.stdin.drain()
        return member

    async def kill(self, dice: random.Random, service: str | None = None) -> tuple[Member, Member]:
        """``kill -9`` one process, of ``service`` or of any, and start another in its place; return both."""
        victim = dice.choice([m for m in self.members if service in (None, m.assignment.service)])
        victim.send(signal.SIGKILL)
        await victim.process.wait()
        self.members.remove(victim)
        return victim, await self.start(victim.assignment)

    def check(self) -> None:
        """Raise `WorkerFailed` if a process ended that nobody killed."""
        for member in self.members:
            if member.process.returncode is not None:
                raise WorkerFailed(
                    f"consumer process {member.name} ended with {member.process.returncode}: {member.last_words()}"
                )

    async def drain(self, service: str | None = None) -> None:
        """Ask the processes of ``service`` (of all) to drain and wait for their end.

        Raises:
            WorkerFailed: one ended with an error, or hangs.
        """
        leaving = [m for m in self.members if service in (None, m.assignment.service)]
        for member in leaving:
            member.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await asyncio.gather(*(m.process.wait() for m in leaving))
        except TimeoutError:
            hanging = ", ".join(m.name for m in leaving if m.process.returncode is None)
            raise WorkerFailed(f"{hanging} did not drain within {_DRAIN_SECONDS:.0f} s") from None
        # One that was killed by SIGTERM had not come far enough to drain: it had received nothing.
        allowed = (0, -signal.SIGTERM)
        if failed := next((m for m in leaving if m.process.returncode not in allowed), None):
            raise WorkerFailed(f"{failed.name} ended with {failed.process.returncode}: {failed.last_words()}")
        self.members = [m for m in self.members if m not in leaving]

    async def abandon(self) -> None:
        """End what is left, quickly: SIGTERM, then SIGKILL. Never raises."""
        with contextlib.suppress(TimeoutError, WorkerFailed):
            async with asyncio.timeout(_ABANDON_SECONDS):
                await self.drain()
        for member in self.members:
            member.send(signal.SIGKILL)
            await member.process.wait()
        self.members = []
