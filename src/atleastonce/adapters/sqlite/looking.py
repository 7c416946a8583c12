"""Looking at what waits, and emptying it."""

from __future__ import annotations

from collections.abc import Sequence

from atleastonce.adapters.sqlite.rows import read_message
from atleastonce.adapters.sqlite.session import Session
from atleastonce.adapters.sqlite.store import FORGET
from atleastonce.channels import Source
from atleastonce.contract import Backlog, Delivery

# Not handed out: free, delayed, blocked behind its lane, or with a reader whose lease is over.
_UNHELD = "source = ?1 AND (held = 0 OR visible <= ?2)"
_WAITING = "source = ?1 AND (visible IS NULL OR visible <= ?2)"


def purge(session: Session, number: int) -> int:
    """Remove what nobody holds."""
    session.touched.add(number)
    gone = session.db.execute(
        f"DELETE FROM deliveries WHERE {_UNHELD} RETURNING seq",  # noqa: S608 - a constant
        (number, session.now),
    ).fetchall()
    session.db.executemany(FORGET, gone)
    return len(gone)


def backlog(session: Session, number: int) -> Backlog:
    session.look()
    waiting, held, delayed = session.db.execute(
        """SELECT count(*) FILTER (WHERE visible IS NULL OR visible <= ?2),
                  count(*) FILTER (WHERE visible > ?2 AND held), count(*) FILTER (WHERE visible > ?2 AND NOT held)
           FROM deliveries WHERE source = ?1""",
        (number, session.now),
    ).fetchone()
    oldest = session.db.execute(
        f"""SELECT m.published FROM deliveries d JOIN messages m ON m.seq = d.seq
            WHERE {_WAITING} ORDER BY d.seq LIMIT 1""",  # noqa: S608 - a constant
        (number, session.now),
    ).fetchone()
    age = max(0.0, session.clock() - oldest[0]) if oldest else None
    return Backlog(waiting=waiting, in_flight=held, delayed=delayed, oldest_age=age)


def browse(session: Session, numbers: Sequence[int], source: Source, limit: int, after: int = -1) -> list[Delivery]:
    """Waiting messages of any of the sources, each once, oldest first, from behind sequence number ``after``."""
    session.look()
    found: dict[int, Delivery] = {}
    for number in numbers:
        for seq, count, identity, key, headers, body, published in session.db.execute(
            f"""SELECT d.seq, d.count, m.id, m.key, m.headers, m.body, m.published
                FROM deliveries d JOIN messages m ON m.seq = d.seq
                WHERE {_WAITING} AND d.seq > ?4 ORDER BY d.seq LIMIT ?3""",  # noqa: S608 - a constant
            (number, session.now, limit, after),
        ):
            message = read_message(identity, key, headers, body, published)
            found.setdefault(seq, Delivery(message, source, source.name, seq, 0, None, count))
    return [found[seq] for seq in sorted(found)[:limit]]


def last(session: Session, number: int) -> int:
    """The newest sequence number in a source; -1 where there is none."""
    found = session.db.execute("SELECT max(seq) FROM deliveries WHERE source = ?", (number,)).fetchone()
    return -1 if found[0] is None else int(found[0])
