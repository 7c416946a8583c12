"""Every statement, as text for any driver.

Values go in as hexadecimal literals and numbers that we have made, never as parameters: that needs no escaping, depends on no
SQL mode and on no driver's placeholders, and one statement serves a list of any length.

The time is the server's at the beginning of a statement, in microseconds. A statement that has waited for a row so takes a
time that is a little old: it grants no lease too early, and gives a lease that is a little shorter, as its holder believes anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from atleastonce.stores.options import SCHEMA_VERSION, TABLES
from atleastonce.stores.outbox import SLOTS
from atleastonce.stores.protocol import State, micros
from atleastonce.stores.records import MAX_FINGERPRINT, MAX_ID, MAX_SCOPE, TOKEN, ClaimRequest, Completion, Lease

NOW = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"
_TABLE = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4"
# Bytes of one statement, as far as it can be had in portions. A server takes 16 MiB or more (`max_allowed_packet`).
LARGEST = 8 << 20


def schema(prefix: str = "alo") -> str:
    """The tables as SQL, for one's own migrations. ``prefix`` may name a database: ``messaging.alo``.

    Scopes and ids are ``VARBINARY``: a collation would take ``A`` and ``a``, or ``a`` and ``a`` with a space, for one message.
    """
    slots = ", ".join(f"({slot}, NULL, 0)" for slot in range(SLOTS))
    key = f"scope VARBINARY({MAX_SCOPE}) NOT NULL, id VARBINARY({MAX_ID}) NOT NULL"
    return f"""\
CREATE TABLE IF NOT EXISTS {prefix}_store (one TINYINT NOT NULL PRIMARY KEY, version INT NOT NULL) {_TABLE};
INSERT INTO {prefix}_store (one, version) VALUES (1, {SCHEMA_VERSION}) ON DUPLICATE KEY UPDATE one = 1;
CREATE TABLE IF NOT EXISTS {prefix}_lease (
    {key}, state TINYINT NOT NULL, token BINARY({TOKEN}) NOT NULL, fence BIGINT NOT NULL, attempts INT NOT NULL,
    doubt TINYINT NOT NULL, lease_until BIGINT NOT NULL, ttl BIGINT NOT NULL, fingerprint VARBINARY({MAX_FINGERPRINT}) NOT NULL,
    result MEDIUMBLOB NOT NULL, created BIGINT NOT NULL, expires BIGINT NOT NULL,
    PRIMARY KEY (scope, id), KEY {_name(prefix)}_lease_expires (expires)) {_TABLE};
CREATE TABLE IF NOT EXISTS {prefix}_inbox (
    {key}, fingerprint VARBINARY({MAX_FINGERPRINT}) NOT NULL, seen BIGINT NOT NULL, created BIGINT NOT NULL,
    expires BIGINT NOT NULL, PRIMARY KEY (scope, id), KEY {_name(prefix)}_inbox_expires (expires)) {_TABLE};
CREATE TABLE IF NOT EXISTS {prefix}_outbox (
    seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, slot TINYINT NOT NULL, state TINYINT NOT NULL, id VARBINARY({MAX_ID}) NOT NULL,
    destination VARBINARY({MAX_ID}) NOT NULL, settings MEDIUMBLOB, `key` MEDIUMBLOB, headers MEDIUMBLOB NOT NULL,
    body LONGBLOB NOT NULL, created BIGINT NOT NULL, due BIGINT NOT NULL, reason BLOB, parked BIGINT,
    KEY {_name(prefix)}_outbox_ready (slot, state, seq), KEY {_name(prefix)}_outbox_due (state, due)) {_TABLE};
CREATE TABLE IF NOT EXISTS {prefix}_outbox_slot (
    slot TINYINT NOT NULL PRIMARY KEY, relay BINARY({TOKEN}), until BIGINT NOT NULL) {_TABLE};
INSERT INTO {prefix}_outbox_slot (slot, relay, until) VALUES {slots} ON DUPLICATE KEY UPDATE slot = VALUES(slot);
CREATE TABLE IF NOT EXISTS {prefix}_outbox_relay (
    relay BINARY({TOKEN}) NOT NULL PRIMARY KEY, name TEXT NOT NULL, until BIGINT NOT NULL) {_TABLE};
"""


def _name(prefix: str) -> str:
    return prefix.rpartition(".")[2]


def blob(value: bytes | str) -> str:
    """``value`` as a literal."""
    return f"x'{(value.encode() if isinstance(value, str) else value).hex()}'"


class Statements:
    """The statements for one prefix."""

    def __init__(self, prefix: str) -> None:
        self._lease, self._inbox = f"{prefix}_lease", f"{prefix}_inbox"
        self.version = f"SELECT version FROM {prefix}_store"
        database, _, name = prefix.rpartition(".")
        where = f"t.table_schema = '{database}'" if database else "t.table_schema = DATABASE()"
        names = ", ".join(f"'{name}_{table}'" for table in TABLES)
        self.tables = (
            f"SELECT t.table_name FROM information_schema.tables t WHERE {where} AND t.table_name IN ({names})"
        )
        self.columns = (
            "SELECT t.table_name, t.engine, c.data_type, c.character_octet_length FROM information_schema.tables t "
            "JOIN information_schema.columns c ON c.table_schema = t.table_schema AND c.table_name = t.table_name "
            f"WHERE {where} AND t.table_name IN ('{name}_lease', '{name}_inbox') AND c.column_name IN ('scope', 'id')"
        )
        self._upsert = self._make_upsert()
        self.stats = [
            f"SELECT (SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {{limit}}) AS few), (SELECT t.table_rows FROM "
            f"information_schema.tables t WHERE {where} AND t.table_name = '{_name(table)}'), "
            f"(SELECT {NOW} - created FROM {table} ORDER BY expires LIMIT 1)"
            for table in (self._lease, self._inbox)
        ]

    def _make_upsert(self) -> str:
        """What becomes of a row that is there. ``VALUES(created)`` is the time.

        Assignments are made from left to right, each seeing those before it (MySQL), so ``taken`` is built to stay as true or
        false as it was, from the first to the last of them: a row that is held or done until ``expires`` has 0 there when it is
        not held, and what ``taken`` compares is set in this order: fingerprint, state, expires, lease_until.
        """
        now = "VALUES(created)"
        gone = f"expires <= {now}"
        taken = (
            f"{gone} OR (fingerprint = VALUES(fingerprint) AND "
            f"(state = {State.FREE:d} OR (state = {State.HELD:d} AND lease_until <= {now})))"
        )
        values = {
            "attempts": f"IF({gone}, 1, attempts + 1)",
            "doubt": f"IF({gone}, 0, doubt OR state = {State.HELD:d})",
            "created": f"IF({gone}, {now}, created)",
            "fence": "GREATEST(fence + 1, VALUES(fence))",
            "token": "VALUES(token)",
            "ttl": "VALUES(ttl)",
            "result": "''",
            "fingerprint": "VALUES(fingerprint)",
            "state": f"{State.HELD:d}",
            "expires": "VALUES(expires)",
            "lease_until": "VALUES(lease_until)",
        }
        return ", ".join(f"{column} = IF({taken}, {value}, {column})" for column, value in values.items())

    # ---------------------------------------------------------------------------------------------------------- leases

    def claim(self, requests: Sequence[ClaimRequest]) -> str:
        """Take what may be taken. A row that may not is locked for the statement, and left as it is."""
        rows = ", ".join(
            f"({blob(each.scope)}, {blob(each.id)}, {State.HELD:d}, {blob(each.token)}, n.t, 1, 0, n.t + {micros(each.lease)}, "
            f"{micros(each.ttl)}, {blob(each.fingerprint)}, '', n.t, n.t + {micros(each.lease) + micros(each.ttl)})"
            # Sorted, so that two lists lock their rows in one order.
            for each in sorted(requests, key=lambda each: (each.scope, each.id.encode()))
        ).replace("n.t", NOW)
        return (
            f"INSERT INTO {self._lease} (scope, id, state, token, fence, attempts, doubt, lease_until, ttl, fingerprint, "
            f"result, created, expires) VALUES {rows} ON DUPLICATE KEY UPDATE {self._upsert}"
        )

    def look(self, keys: Iterable[tuple[str, str]]) -> str:
        """The rows as they are now."""
        return (
            f"SELECT scope, id, state, token, fence, attempts, doubt, fingerprint, result, lease_until - {NOW} "
            f"FROM {self._lease} FORCE INDEX (PRIMARY) WHERE {_among(keys)}"
        )

    def holders(self, keys: Iterable[tuple[str, str]]) -> str:
        """Who has them now, and whether still."""
        return f"SELECT scope, id, token, state FROM {self._lease} FORCE INDEX (PRIMARY) WHERE {_among(keys)}"

    def extend(self, leases: Sequence[Lease], seconds: float) -> str:
        """Let those that are held last from now."""
        until = f"{NOW} + {micros(seconds)}"
        return self._update(leases, f"l.lease_until = {until}, l.expires = {until} + l.ttl")

    def release(self, leases: Sequence[Lease]) -> str:
        """Give back those that are held."""
        return self._update(leases, f"l.state = {State.FREE:d}, l.lease_until = 0, l.expires = {NOW} + l.ttl")

    def complete(self, items: Sequence[Completion]) -> list[str]:
        """End those that are held, in as many statements as their results need."""
        statements, some, size = [], list[Completion](), 0
        for item in items:
            more = 2 * len(item.result)  # a byte is two digits
            if some and size + more > LARGEST:
                statements.append(self._end(some))
                some, size = [], 0
            some.append(item)
            size += more
        return [*statements, self._end(some)]

    def _end(self, items: Sequence[Completion]) -> str:
        more = [f", {blob(each.result)}, {micros(each.ttl)}" for each in items]
        done = f"l.state = {State.DONE:d}, l.lease_until = 0, l.result = a.result, l.expires = {NOW} + a.expires"
        return self._update([each.lease for each in items], done, more, ", result, expires")

    def _update(self, leases: Sequence[Lease], values: str, more: Sequence[str] = (), columns: str = "") -> str:
        """``values`` may read no column that it sets: an UPDATE of a join has no order."""
        pairs = zip(leases, more or [""] * len(leases), strict=True)
        rows = " UNION ALL ".join(
            # The first names the types: MariaDB would take those of the longest literals, and cut one of 65536 bytes to 0.
            [
                f"SELECT scope, id, token{columns} FROM {self._lease} WHERE false",
                *(
                    f"SELECT {blob(each.scope)}, {blob(each.id)}, {blob(each.token)}{rest}"
                    for each, rest in sorted(pairs, key=lambda pair: (pair[0].scope, pair[0].id.encode()))
                ),
            ]
        )
        return (
            f"UPDATE ({rows}) AS a STRAIGHT_JOIN {self._lease} AS l "
            "ON l.scope = a.scope AND l.id = a.id AND l.token = a.token "
            f"SET {values} WHERE l.state = {State.HELD:d}"
        )

    def purges(self, limit: int) -> list[str]:
        """What has expired goes, the oldest first."""
        return [
            f"DELETE FROM {table} WHERE expires <= {NOW} ORDER BY expires LIMIT {limit:d}"
            for table in (self._lease, self._inbox)
        ]

    # ----------------------------------------------------------------------------------------------------------- inbox

    def record(self, scope: str, asked: Mapping[str, bytes], ttl: float) -> str:
        """Insert what is new, and count what is not: its row changes, so the number of affected rows is 1 for each that is new
        and 2 for each that is not, whether or not the driver asked for ``CLIENT_FOUND_ROWS``."""
        rows = ", ".join(
            f"({blob(scope)}, {blob(id)}, {blob(fingerprint)}, 0, {NOW}, {NOW} + {micros(ttl)})"
            for id, fingerprint in asked.items()
        )
        return (
            f"INSERT INTO {self._inbox} (scope, id, fingerprint, seen, created, expires) VALUES {rows} "
            "ON DUPLICATE KEY UPDATE seen = seen + 1"
        )

    def recorded(self, scope: str, ids: Iterable[str]) -> str:
        """After `record`, in its transaction: a row that was seen 0 times is new."""
        return (
            f"SELECT id, fingerprint, seen FROM {self._inbox} FORCE INDEX (PRIMARY) "
            f"WHERE {_among((scope, id) for id in ids)}"
        )


def _among(keys: Iterable[tuple[str, str]]) -> str:
    scopes: dict[str, list[str]] = {}
    for scope, id in keys:
        scopes.setdefault(scope, []).append(blob(id))
    return " OR ".join(f"(scope = {blob(scope)} AND id IN ({', '.join(ids)}))" for scope, ids in scopes.items())
