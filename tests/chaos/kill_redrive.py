"""A redrive that is killed at a random moment, run again, and what came of every message."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atleastonce import Source, Topic, connect, wire
from atleastonce.contract import DelayChannel, Outgoing, Topology
from atleastonce.message import Headers, Message
from atleastonce.patterns.redrive import way_back

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from redrive_kit import taken

COMMAND = [sys.executable, "-m", "atleastonce", "dlq"]
DEADLINE = 200.0


class Scene:
    """``count`` dead letters of a topic's group, half of them of another kind that nobody redrives."""

    def __init__(self, url: str, count: int) -> None:
        run = uuid.uuid4().hex[:8]
        self.url = url
        self.count = count
        self.home = Source(Topic[Any](f"chaos.{run}", partitions=2), "billing")
        self.wanted = {f"m{n}" for n in range(count) if n % 2 == 0}
        self.kept = {f"m{n}" for n in range(count)} - self.wanted
        self.way: Source

    async def bury(self) -> None:
        async with connect(self.url) as broker:
            delays = (DelayChannel(self.home.redrive_channel, 0.0, self.home),)
            direct = broker.adapter.capabilities.addresses_groups
            dead = self.home.dead_letter_channel
            topology = Topology((self.home.channel,), (self.home,), () if direct else delays, (dead,))
            await broker.declare(topology)
            way = way_back(self.home, broker.adapter)
            self.way = way if isinstance(way, Source) else Source(way)
            items = [Outgoing(dead, self._letter(n)) for n in range(self.count)]
            assert all(outcome.ok for outcome in await broker.adapter.send(items))

    def _letter(self, number: int) -> Message:
        fields = {
            wire.ID: f"m{number}",
            wire.GROUP: "billing",
            wire.ORIGIN: self.home.channel.name,
            wire.ERROR_STAGE: "handler",
            wire.ERROR_TYPE: "KeyError" if number % 2 else "ValueError",
            wire.FINGERPRINT: "odd" if number % 2 else "even",
        }
        return Message(f"m{number}", b'{"n":%d}' % number, b"k%d" % (number % 5), Headers(fields))

    def start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        group = self.home.group or ""
        arguments = ["--broker", self.url, "--channel", self.home.channel.name, "--group", group, "--json", *options]
        return subprocess.Popen([*COMMAND, command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process: subprocess.Popen[bytes]) -> Any:
        """Its report. Exit code 1 says that others held letters: those of a killed run are out until its lease ends."""
        output, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode in (0, 1), errors.decode()
        assert process.returncode == 0 or b"another reader" in errors, errors.decode()
        return json.loads(output)

    async def arrived(self) -> Counter[str]:
        """How often each message came back to its group: read until nothing more comes, and taken."""
        async with connect(self.url) as broker:
            return await taken(broker, self.way, 1, within=10)

    async def dead(self) -> Counter[str]:
        """What is dead now, once what a killed run held is back: a lease ends, a group forgets a member."""
        end = time.monotonic() + DEADLINE
        async with connect(self.url) as broker:
            letters = broker.dead_letters(self.home.channel, self.home.group)
            while True:
                found = Counter([letter.id async for letter in letters.letters()])
                if found.keys() >= self.kept or time.monotonic() > end:
                    return found
                await asyncio.sleep(0.5)


async def kill_and_resume(url: str, *, count: int, kills: int, seed: int, rate: str = "600/s") -> dict[str, Any]:
    """Kill ``kills`` runs at random moments, let one go to its end; account for every message. The rate is one at which the first
    run takes longer than the latest moment."""
    chance = random.Random(seed)
    scene = Scene(url, count)
    await scene.bury()
    killed: list[float] = []
    options: Sequence[str] = ("--error-type", "ValueError")
    for _ in range(kills):
        process = scene.start("redrive", *options, "--rate", rate)
        moment = chance.uniform(0.4, 2.2)
        try:
            await asyncio.to_thread(process.wait, moment)
        except subprocess.TimeoutExpired:
            process.kill()
            killed.append(moment)
        await asyncio.to_thread(process.communicate)
    runs = 0
    end = time.monotonic() + DEADLINE
    while True:  # what a killed run held comes back in its broker's own time
        account = await asyncio.to_thread(scene.finish, await asyncio.to_thread(scene.start, "redrive", *options))
        runs += 1
        left = await scene.dead()
        if not left.keys() & scene.wanted or time.monotonic() > end:
            break
    arrived = await scene.arrived()
    return {
        "killed": len(killed),
        "runs": runs,
        "last": account,
        "lost": sorted(scene.wanted - arrived.keys() - left.keys()) + sorted(scene.kept - left.keys()),
        "strays": sorted(arrived.keys() - scene.wanted),
        "still_dead": sorted(left.keys() & scene.wanted),
        "twice": sum(times - 1 for times in arrived.values()),
        "most": max(arrived.values()),
    }


if __name__ == "__main__":
    print(
        json.dumps(
            asyncio.run(
                kill_and_resume(sys.argv[1], count=int(sys.argv[2]), kills=int(sys.argv[3]), seed=int(sys.argv[4]))
            ),
            indent=1,
        )
    )
