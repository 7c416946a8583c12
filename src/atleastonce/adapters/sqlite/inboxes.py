"""Inboxes for answers: queues whose owners take out at once what comes."""

from __future__ import annotations

from typing import Final

from atleastonce.adapters.sqlite.store import Store
from atleastonce.channels import Queue, Source
from atleastonce.contract import Topology

_STALE_SECONDS: Final = 3600.0

_STALE = """SELECT DISTINCT channels.name FROM channels JOIN messages ON messages.channel = channels.id
    WHERE channels.name GLOB 'alo.reply.????????????????????????????????' AND messages.published < ?"""


def inbox(name: str) -> Topology:
    """What an inbox consists of."""
    return Topology(channels=(Queue(name),), sources=(Source(Queue(name)),))


def stale_inboxes(store: Store) -> list[str]:
    """Those that nobody reads. One that never got an answer costs two rows, and stays."""
    return [name for (name,) in store.db.execute(_STALE, (store.clock() - _STALE_SECONDS,))]
