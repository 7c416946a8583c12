"""A queue in a SQLite table by hand, with the same promises as ours: WAL, fsync at every commit, leases with a fence,
several processes."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from loops.common import ID_HEADER, Job, Meter, Order, Result, body, headers, stamped

_BATCH = 500
_LEASE = 30.0
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS jobs (
        seq INTEGER PRIMARY KEY, headers BLOB NOT NULL, body BLOB NOT NULL,
        visible REAL NOT NULL, claim INTEGER NOT NULL DEFAULT 0, count INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX IF NOT EXISTS jobs_visible ON jobs (visible, seq);
"""
_INSERT = "INSERT INTO jobs (headers, body, visible) VALUES (?, ?, ?)"
_CLAIM = """
    UPDATE jobs SET visible = ?, claim = claim + 1, count = count + 1
    WHERE seq IN (SELECT seq FROM jobs WHERE visible <= ? ORDER BY visible, seq LIMIT ?)
    RETURNING seq, claim, headers, body"""
_ANY = "SELECT 1 FROM jobs WHERE visible <= ? LIMIT 1"
_SETTLE = "DELETE FROM jobs WHERE seq = ? AND claim = ?"


def connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA busy_timeout = 5000")
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.executescript(_SCHEMA)
    return db


def load(path: str, messages: int) -> None:
    """Fill a fresh queue."""
    Path(path).unlink(missing_ok=True)
    db = connect(path)
    encode = msgspec.json.encode
    db.execute("BEGIN IMMEDIATE")
    db.executemany(_INSERT, ((encode(headers(n)), body(n), time.time()) for n in range(messages)))
    db.execute("COMMIT")
    db.close()


def remaining(path: str) -> int:
    db = connect(path)
    try:
        return int(db.execute("SELECT count(*) FROM jobs").fetchone()[0])
    finally:
        db.close()


def raw(job: Job) -> Result:
    """Claims and settles lists; the settling of one shares the transaction with the claim of the next."""
    if job.scenario.startswith("publish"):
        return _publish(job, _BATCH if job.scenario == "publish_many" else job.concurrency)
    db, meter = connect(job.address), Meter(job)
    decode, fields = msgspec.json.Decoder(Order).decode, msgspec.json.Decoder(list[tuple[str, str]]).decode
    rows: list[tuple[int, int, bytes, bytes]] = []
    while True:
        now = time.time()
        db.execute("BEGIN IMMEDIATE")
        db.executemany(_SETTLE, [(seq, claim) for seq, claim, _, _ in rows])
        rows = db.execute(_CLAIM, (now + _LEASE, now, _BATCH)).fetchall()
        db.execute("COMMIT")
        if meter.done:
            return meter.result()
        while not rows and not db.execute(_ANY, (time.time(),)).fetchone():
            time.sleep(0.001)  # looks without the write lock, which would be taken from the producer
        if job.scenario == "batch":
            orders = []
            for _, _, head, text in rows:
                _ = dict(fields(head))[ID_HEADER]
                orders.append(decode(text))
            for order in orders:
                meter.handled(order)
            continue
        for _, _, head, text in rows:
            _ = dict(fields(head))[ID_HEADER]
            meter.handled(decode(text))


def naive(job: Job) -> Result:
    """One message, two transactions."""
    if job.scenario.startswith("publish"):
        return _publish(job, 1)
    import json

    db, meter = connect(job.address), Meter(job)
    while not meter.done:
        now = time.time()
        row = db.execute(_CLAIM, (now + _LEASE, now, 1)).fetchone()
        if row is None:
            time.sleep(0.01)
            continue
        seq, claim, head, text = row
        _ = dict(json.loads(head))[ID_HEADER]
        order = json.loads(text)
        meter.handled(Order(**order) if job.scenario == "latency" else order)
        db.execute(_SETTLE, (seq, claim))
    return meter.result()


def _publish(job: Job, batch: int) -> Result:
    db, meter = connect(job.address), Meter(job)
    encode = msgspec.json.encode
    orders = [msgspec.json.decode(body(n), type=Order) for n in range(job.messages)]
    meter.begin()
    for begin in range(0, job.messages, batch):
        now = time.time()
        db.execute("BEGIN IMMEDIATE")
        numbers = range(begin, min(begin + batch, job.messages))
        db.executemany(_INSERT, [(encode(headers(n)), encode(orders[n]), now) for n in numbers])
        db.execute("COMMIT")
    return meter.result()


def feed(job: Job) -> None:
    """Publish at ``job.rate`` per second, each with its time in ``order_id``."""
    db = connect(job.address)
    begin = time.perf_counter()
    for n in range(job.messages):
        time.sleep(max(0.0, begin + n / job.rate - time.perf_counter()))
        db.execute(_INSERT, (msgspec.json.encode(headers(n)), stamped(n), time.time()))
