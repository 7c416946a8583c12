#!/usr/bin/env python3
"""Order per key on Kafka: ours beside a loop written by hand, in one run, in turns.

``work``: the case that Confluent's Parallel Consumer publishes: 10 000 records of one partition, 0 to 5 ms of simulated work for
each, at most 100 at once, for some numbers of keys. By hand it is a thread that polls, a queue and a task for each key, a
semaphore, and the offset below which all is done, committed every half second. ``lanes``: what lanes cost: an empty handler, 1000
keys in 4 partitions, beside the raw client's list loop and beside ours without order.

Each measurement is a process of its own; the clock runs from the first handler's begin to the last one's end. A figure counts
only if every key was in order. Processor time is of the whole process, all its threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PLACES = 100
SECONDS = 120.0


class Record(msgspec.Struct):
    key: str
    n: int


class Meter:
    """Checks the order of each key and takes the time."""

    def __init__(self, count: int, work: float) -> None:
        self.left, self.work = count, work
        self.last: dict[str, int] = {}
        self.begun = self.ended = self.cpu = 0.0
        self.wrong = 0
        self.over = asyncio.Event()

    async def handle(self, record: Record) -> None:
        if not self.begun:
            self.begun, self.cpu = time.perf_counter(), time.process_time()
        if self.work:
            await asyncio.sleep(random.uniform(0, self.work))
        self.note(record)

    def note(self, record: Record) -> None:
        if not self.begun:
            self.begun, self.cpu = time.perf_counter(), time.process_time()
        if self.last.get(record.key, -1) >= record.n:
            self.wrong += 1
        self.last[record.key] = record.n
        self.left -= 1
        if not self.left:
            self.ended, self.cpu = time.perf_counter(), time.process_time() - self.cpu
            self.over.set()

    def result(self) -> dict[str, Any]:
        return {"seconds": self.ended - self.begun, "cpu": self.cpu, "wrong": self.wrong}


# ---------------------------------------------------------------------------------------------------------- the contenders


async def ours(url: str, topic: str, meter: Meter, ordered: Any) -> None:
    from atleastonce import Service, Topic

    service = Service(f"bench-{uuid.uuid4().hex}", broker=url)
    source: Topic[Record] = Topic(topic, Record)
    service.consumer(source, ordered=ordered, concurrency=PLACES)(meter.handle)
    serving = asyncio.create_task(service.serve(tune_gc=True))
    async with asyncio.timeout(SECONDS):
        await meter.over.wait()
    service.request_stop()
    await serving


def _consumer(address: str, topic: str) -> Consumer:
    settings = {
        "bootstrap.servers": address,
        "group.id": f"hand-{uuid.uuid4().hex}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "fetch.queue.backoff.ms": 5,
    }
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    return consumer


async def hand(address: str, topic: str, meter: Meter) -> None:
    """What one writes: a queue and a task for each key, a semaphore, and the contiguous offset committed."""
    loop, free = asyncio.get_running_loop(), asyncio.Semaphore(PLACES)
    decode = msgspec.json.Decoder(Record).decode
    lanes: dict[bytes, asyncio.Queue[Any]] = {}
    tasks: set[asyncio.Task[None]] = set()
    open_: deque[int] = deque()
    done: set[int] = set()
    room = threading.Semaphore(1000)
    stopping = False
    position = 0

    async def lane(queue: asyncio.Queue[Any]) -> None:
        while True:
            message = await queue.get()
            async with free:
                await meter.handle(decode(message.value()))
            done.add(message.offset())
            nonlocal position
            while open_ and open_[0] in done:
                done.discard(position := open_.popleft())
            room.release()

    def came(batch: list[Any]) -> None:
        for message in batch:
            open_.append(message.offset())
            key = message.key()
            if key not in lanes:
                lanes[key] = asyncio.Queue()
                tasks.add(loop.create_task(lane(lanes[key])))
            lanes[key].put_nowait(message)

    def poll() -> None:
        consumer, committed = _consumer(address, topic), time.monotonic()
        while not stopping:
            first = consumer.poll(0.05)
            if first is not None:
                batch = [first, *consumer.consume(499, 0)]
                for _ in batch:
                    room.acquire()
                loop.call_soon_threadsafe(came, batch)
            if time.monotonic() - committed > 0.5 and position:
                committed = time.monotonic()
                consumer.commit(offsets=[TopicPartition(topic, 0, position + 1)], asynchronous=True)
        consumer.commit(offsets=[TopicPartition(topic, 0, position + 1)], asynchronous=False)
        consumer.close()

    thread = threading.Thread(target=poll)
    thread.start()
    async with asyncio.timeout(SECONDS):
        await meter.over.wait()
    stopping = True
    await asyncio.to_thread(thread.join)
    for task in tasks:
        task.cancel()


async def raw(address: str, topic: str, meter: Meter) -> None:
    """The fastest loop that loses nothing: lists, one after the other."""
    consumer, decode = _consumer(address, topic), msgspec.json.Decoder(Record).decode
    ends: dict[int, int] = {}
    committed = time.monotonic()
    while meter.left:
        first = consumer.poll(0.05)
        if first is None:
            continue
        for message in [first, *consumer.consume(499, 0)]:
            meter.note(decode(message.value()))
            ends[message.partition()] = message.offset() + 1
        if time.monotonic() - committed > 0.5:
            committed = time.monotonic()
            consumer.commit(offsets=[TopicPartition(topic, *end) for end in ends.items()], asynchronous=True)
    consumer.commit(offsets=[TopicPartition(topic, *end) for end in ends.items()], asynchronous=False)
    consumer.close()


CONTENDERS: dict[str, Callable[[str, str, str, Meter], Awaitable[None]]] = {
    "ours": lambda url, _, topic, meter: ours(url, topic, meter, True),
    "by field": lambda url, _, topic, meter: ours(url, topic, meter, "key"),
    "unordered": lambda url, _, topic, meter: ours(url, topic, meter, False),
    "hand": lambda _, address, topic, meter: hand(address, topic, meter),
    "raw": lambda _, address, topic, meter: raw(address, topic, meter),
}


# -------------------------------------------------------------------------------------------------------------- the parent


def fill(address: str, topic: str, count: int, keys: int, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)
    producer = Producer(
        {"bootstrap.servers": address, "enable.idempotence": True, "queue.buffering.max.messages": 500_000}
    )
    for number in range(count):
        key = f"k{number % keys}"
        body = msgspec.json.encode(Record(key, number // keys))
        producer.produce(topic, body, key=key, partition=number % keys % partitions)
        if number % 1000 == 0:
            producer.poll(0)
    if producer.flush(60):
        raise TimeoutError("not all was confirmed within 60 s")


def measure(who: str, url: str, topic: str, count: int, work: float) -> tuple[float, float]:
    """Seconds, of the clock and of the processor."""
    command = [sys.executable, __file__, "--child", who, url, topic, str(count), str(work)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=SECONDS + 30)
    found = json.loads(child.stdout.strip().splitlines()[-1])
    if found["wrong"] and who != "unordered":
        raise RuntimeError(f"{who}: {found['wrong']} records out of order")
    return found["seconds"], found["cpu"]


def compare(
    url: str, who: list[str], count: int, keys: int, partitions: int, work: float, rounds: int
) -> dict[str, Any]:
    address = url.removeprefix("kafka://")
    topic = f"bench-ordered-{uuid.uuid4().hex[:8]}"
    fill(address, topic, count, keys, partitions)
    taken: dict[str, list[tuple[float, float]]] = {each: [] for each in who}
    try:
        for _ in range(rounds):
            for each in who:
                taken[each].append(measure(each, url, topic, count, work))
    finally:
        admin = AdminClient({"bootstrap.servers": address})  # a name, for the futures die with it
        admin.delete_topics([topic])[topic].result(30)
    return {
        "records": count,
        "keys": keys,
        "seconds": {each: round(statistics.median(clock for clock, _ in times), 3) for each, times in taken.items()},
        "cpu_us_per_record": {
            each: round(statistics.median(cpu for _, cpu in times) / count * 1e6, 2) for each, times in taken.items()
        },
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["work", "lanes"], nargs="?", default="work")
    options.add_argument("--keys", type=int, nargs="+", default=[1000])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        who, url, topic, count, work = given.child
        meter = Meter(int(count), float(work))
        asyncio.run(CONTENDERS[who](url, url.removeprefix("kafka://"), topic, meter))  # type: ignore[arg-type]
        print(json.dumps(meter.result()))
        return
    from atleastonce.brokers import up

    broker = up(["kafka"])["kafka"]
    if given.what == "work":
        for keys in given.keys:
            print(json.dumps(compare(broker.url, ["ours", "hand"], 10_000, keys, 1, 0.005, given.rounds)), flush=True)
    else:
        who = ["raw", "unordered", "ours", "by field"]
        print(json.dumps(compare(broker.url, who, 100_000, 1000, 4, 0.0, given.rounds)))


if __name__ == "__main__":
    main()
