"""A relay's look at the outbox in a file: one statement, and all rows as one row. Python gives up its lock for each statement and
each row, and gets it back up to 5 ms later while the loop's thread is busy."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from atleastonce.stores.outbox import FETCHED_BYTES, OutboxRow, runs
from atleastonce.stores.sqlite.desk import NOW

_Bytes = TypeVar("_Bytes", str, bytes)

_numbers = msgspec.json.Decoder(list[int]).decode
_numbers_or_none = msgspec.json.Decoder(list[int | None]).decode
_texts = msgspec.json.Decoder(list[str]).decode
_texts_or_none = msgspec.json.Decoder(list[str | None]).decode


def _list(column: str) -> str:
    return f"CAST(json_group_array({column}) AS BLOB)"


# Keys, header fields and bodies end to end, and how long each is: to write bytes as JSON costs more.
_JOINED = "SELECT (SELECT encoding FROM pragma_encoding), " + ", ".join(
    (
        _list("seq"),
        _list("slot"),
        _list("CAST(destination AS TEXT)"),
        _list("CAST(settings AS TEXT)"),
        _list("CAST(id AS TEXT)"),
        *(_list(f"length(CAST({name} AS BLOB))") for name in ("key", "headers", "body")),
        *(f"CAST(group_concat({name}, '') AS BLOB)" for name in ("key", "headers", "body")),
    )
)


class Look:
    """Arguments as `OutboxStore.outbox_fetch`, and the name of the table.

    The same rows are looked for in the same words, with all numbers as parameters: SQLite takes a millisecond to understand them,
    and `sqlite3` keeps what it has understood.
    """

    def __init__(
        self,
        outbox: str,
        relay: bytes,
        slots: Collection[int],
        limit: int,
        held: Collection[int],
        paused: Collection[str],
        most: int,
    ) -> None:
        long, others = runs(held)
        self._outbox = outbox
        self._slots = sorted(slots)
        self._given: dict[str, Any] = {"relay": relay, "limit": limit, "most": most}
        self._free = ""
        for number, (first, last) in enumerate(long):
            self._free += f"AND seq NOT BETWEEN :first{number} AND :last{number} "
            self._given |= {f"first{number}": first, f"last{number}": last}
        if others:
            self._free += "AND seq NOT IN (SELECT value FROM json_each(:others)) "
            self._given["others"] = json.dumps(others)
        if paused:
            self._free += "AND destination NOT IN (SELECT value FROM json_each(:paused)) "
            self._given["paused"] = json.dumps(list(paused))

    def rows(self, connection: sqlite3.Connection) -> list[OutboxRow]:
        """What is found."""
        if not self._slots:
            return []
        found = self._joined(connection)
        return self._one_by_one(connection) if found is None else found

    def _joined(self, connection: sqlite3.Connection) -> list[OutboxRow] | None:
        """All at once. None: that cannot be, or it may not be all that was asked for."""
        # What is so long has an end, at 1 000 000 000 bytes, and so has memory. To ask each row for its size costs as much as half
        # of all else; that it is too much nearly never happens, and SQLite notices. Sorted without a limit, and cut off afterwards:
        # with one SQLite keeps a tree.
        sql = (
            f"WITH free AS MATERIALIZED (SELECT seq FROM ({self._some('seq')}) ORDER BY +seq) {_JOINED} "
            f"FROM (SELECT seq FROM free LIMIT :most) CROSS JOIN {self._outbox} USING (seq)"
        )
        longest = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, FETCHED_BYTES)
        try:
            encoding, *lists, keys, headers, bodies = connection.execute(sql, self._given).fetchone()
        except sqlite3.DataError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_TOOBIG:
                raise
            return None
        finally:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        if encoding != "UTF-8":  # bytes that were joined as text of another encoding have been converted
            return None
        try:
            return _rows(lists, keys or b"", headers or b"", bodies or b"")
        except msgspec.DecodeError:  # columns whose text is none, as somebody's SQL may have written them
            return None

    def _one_by_one(self, connection: sqlite3.Connection) -> list[OutboxRow]:
        """As far as all before them have less than so many bytes: what does not fit is for the next look."""
        first = (
            "WITH first AS MATERIALIZED (SELECT * FROM "
            f"({self._some('seq, length(headers) + length(body) AS size')}) ORDER BY +seq LIMIT :most) "
        )
        chosen = (
            f"FROM {self._outbox} WHERE seq IN (SELECT seq FROM (SELECT seq, sum(size) OVER (ORDER BY seq) - size AS before "
            f"FROM first) WHERE before < {FETCHED_BYTES}) ORDER BY seq"
        )

        def ask(text: str) -> list[OutboxRow]:
            texts = (f"CAST({name} AS {text})" for name in ("destination", "settings", "id"))
            columns = f"{', '.join(texts)}, CAST(key AS BLOB), CAST(headers AS {text}), CAST(body AS BLOB)"
            return OutboxRow.of(connection.execute(f"{first}SELECT seq, slot, {columns} {chosen}", self._given))

        try:
            return ask("TEXT")
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
            return ask("BLOB")  # the row that has it is told by its flaw

    def _some(self, columns: str) -> str:
        """The first ones of each slot."""
        outbox = self._outbox
        return " UNION ALL ".join(
            f"SELECT * FROM (SELECT {columns} FROM {outbox} o WHERE slot = {slot:d} AND state = 0 {self._free}"
            # Whether anything blocks at all is asked once, and not for each row.
            f"AND (NOT EXISTS (SELECT 1 FROM {outbox} WHERE state = 3) OR NOT EXISTS "
            f"(SELECT 1 FROM {outbox} p WHERE p.state = 3 AND p.destination = o.destination AND p.key = o.key)) "
            f"AND EXISTS (SELECT 1 FROM {outbox}_slot s WHERE s.slot = {slot:d} AND s.relay = :relay AND s.until > {NOW}) "
            "ORDER BY seq LIMIT :limit)"
            for slot in self._slots
        )


def _rows(lists: Sequence[bytes], keys: bytes, headers: bytes, bodies: bytes) -> list[OutboxRow] | None:
    """The rows that `_JOINED` gave; None: too many bytes, or another order than that of their numbers."""
    numbers = _numbers(lists[0])
    if len(headers) + len(bodies) >= FETCHED_BYTES or numbers != sorted(numbers):
        return None
    slots, destinations, settings, ids = (
        _numbers(lists[1]),
        _texts(lists[2]),
        _texts_or_none(lists[3]),
        _texts(lists[4]),
    )
    key_sizes = _numbers_or_none(lists[5])
    sizes = [size or 0 for size in key_sizes]
    found_keys: list[bytes | None] = [*_cut(keys, sizes)]
    if None in key_sizes:
        found_keys = [None if size is None else key for size, key in zip(key_sizes, found_keys, strict=True)]
    header_sizes, body_sizes = _numbers(lists[6]), _numbers(lists[7])
    found_headers: Sequence[str | bytes]
    if headers.isascii():  # as nearly always
        found_headers = _cut(headers.decode(), header_sizes)
    else:
        found_headers = _cut(headers, header_sizes)
    columns = (numbers, slots, destinations, settings, ids, found_keys, found_headers, _cut(bodies, body_sizes))
    return OutboxRow.of(zip(*columns, strict=True))


def _cut(joined: _Bytes, sizes: Sequence[int]) -> list[_Bytes]:
    return [joined[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
