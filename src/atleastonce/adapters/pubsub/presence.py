"""Whether a subscription that brings nothing is still there, with its topic: no pull says so.

A pull of a subscription whose topic was deleted waits as if nothing had been published, and some servers let one wait whose
subscription was deleted. So the subscription is looked at now and then, but only while nothing comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc

from atleastonce.adapters.pubsub import faults
from atleastonce.adapters.pubsub.channel import GetSubscriptionRequest, Link
from atleastonce.adapters.pubsub.topology import DELETED_TOPIC
from atleastonce.channels import Source
from atleastonce.contract import Code
from atleastonce.errors import AtLeastOnceError, Closed, NotFound

log = logging.getLogger("atleastonce.pubsub")

LOOK_SECONDS: Final = 30.0
"""Between two looks of one reader. Shorter: the looks of many idle readers use up the 6000 administrator requests that a project
has for a minute (at 30 s: 3000 readers). Longer: a reader without a topic waits in silence for so long."""


def ensure_topic(found: Any, source: Source) -> None:
    """Return where subscription ``found`` has a topic.

    Raises:
        NotFound: it was deleted.
    """
    if found.topic == DELETED_TOPIC:
        raise NotFound(
            f"reading {source.name}: the topic of this subscription was deleted, and it cannot get another; read it "
            "empty with another client, delete it, and declare it anew"
        )


class Presence:
    """Looks at one subscription.

    Args:
        name: of the subscription, in full.
        timeout: seconds for one look.
        missing: told what is not there, once.
    """

    def __init__(
        self, link: Link, source: Source, name: str, timeout: float, missing: Callable[[AtLeastOnceError], None]
    ) -> None:
        self._link = link
        self._source = source
        self._name = name
        self._timeout = timeout
        self._missing = missing
        self._next = 0.0
        self._look: asyncio.Task[None] | None = None

    def heard(self, now: float) -> None:
        """A message came at ``now``: there is no need to look for a while."""
        self._next = now + LOOK_SECONDS

    def silent(self, now: float) -> None:
        """Nothing has come up to ``now``: look, if the last sign of life is long ago. Returns at once."""
        if not self._next:  # it was looked at when the reader began
            self.heard(now)
        if now >= self._next and self._look is None:
            self.heard(now)
            self._look = asyncio.create_task(self._ask())

    async def close(self) -> None:
        """Look no more."""
        look, self._look = self._look, None
        if look is not None:
            look.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([look])

    async def _ask(self) -> None:
        request = GetSubscriptionRequest(subscription=self._name)
        try:
            ensure_topic(await self._link.call("GetSubscription", request, seconds=self._timeout), self._source)
        except NotFound as error:
            self._missing(error)
        except Closed:
            return
        except grpc.RpcError as error:
            code = faults.classify(error).code
            if code is Code.NOT_FOUND:
                self._missing(faults.as_error(error, f"reading {self._source.name}", lost=True))
            elif code is Code.PERMISSION:  # roles/pubsub.subscriber may read messages and not settings
                return  # and so it will stay: no further look
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may tell more
            log.warning("looking whether %s is there: %r", self._source, error)
        self._look = None
