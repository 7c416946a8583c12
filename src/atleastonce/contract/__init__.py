"""THE adapter contract: what every broker adapter implements, and all that the engine, patterns and commands know of a broker.

An adapter moves *lists* of messages and settlements. It does not retry, back off, batch over time, limit, order, time out or log
per message: that exists once, above it. Whoever writes an adapter implements `Adapter` and `Subscription`, states its
`Capabilities`, and runs `atleastonce.testing.conformance` against it.

Rules that hold for every method
    **Thread.** All methods are called on one running event loop, and must not block it. A client that blocks gets threads of the
    adapter's own; they exchange lists with the loop (a deque and one coalesced ``call_soon_threadsafe``), never single messages.

    **Per item.** `send`, `settle` and `extend` return one `Outcome` for each item, in order, and do not raise for an item's sake.
    `send` raises only where nothing was attempted: `Closed`, after `close`.

    **Unknown is an answer.** An item whose reply was lost, timed out or was cut off by a dying connection is ``unknown``: never
    ``ok`` (that loses messages), never ``rejected`` (that hides a copy). The caller repeats it with the same message id.

    **At once.** `send` runs several times at once, for different items. Of one subscription, `settle`, `extend`, `pause`,
    `resume` and `close` are called while a `receive` waits and while another of them runs; of `receive`, one call at a time.

    **Cancellation.** A cancelled `receive` loses nothing: what had arrived is handed out by the next `receive`, or is released by
    `close`. A cancelled `send` or `settle` may have happened. No method swallows ``CancelledError``.

    **After close.** Of an adapter, `backlog` answers unknown and everything else that asks the broker raises `Closed`. Of a
    subscription, `receive` raises `Closed`, one that waits at once; `settle` and `extend` send nothing and answer each item
    ``rejected`` with `Code.STALE` (what was settled before may be answered ``ok``); `pause` and `resume` do nothing.

    **Epochs.** Everything that invalidates tokens (reconnect, re-created channel, lost partition) begins a new epoch of that
    stream. A settlement from an old epoch is dropped and counted, answered ``rejected`` with `Code.STALE`, and *never sent*: on
    some brokers a stale token acknowledges somebody else's message (AMQP delivery tags are per channel).

    **Bytes are sacred.** Body, key and header fields come out as they went in. What a broker cannot carry is refused with
    ``rejected``, or packed and unpacked invisibly; it is never altered, cut or dropped.

    **Retention.** A list that was passed in belongs to the caller after the call has returned.
"""

from atleastonce.contract.abilities import (
    Annotated,
    Browses,
    Dates,
    Deletes,
    Describes,
    Inspects,
    MovesAll,
    Purges,
    Scans,
    Transacts,
)
from atleastonce.contract.adapter import Adapter, Listener, Subscription
from atleastonce.contract.capabilities import NONE, Ability, Capabilities, Counting, Leasing, Level, Ordering
from atleastonce.contract.facts import Fact, Trait
from atleastonce.contract.moves import Backlog, Delivery, HandOff, Outgoing, Settlement, Window
from atleastonce.contract.outcomes import OK, STALE, Code, Fault, Outcome, Scope, Status, rejected, unknown
from atleastonce.contract.replies import Arrived, AskingHeaders, KeepsInboxes, Replies, Reply, ReplyInbox, ReplyTo
from atleastonce.contract.resources import Resource
from atleastonce.contract.topology import DelayChannel, Drift, Topology
from atleastonce.contract.verdicts import ACK, DIED, RELEASE, Ack, Reject, Release, Retry, Verdict

__all__ = [
    "ACK",
    "Ability",
    "Ack",
    "Adapter",
    "Annotated",
    "Arrived",
    "AskingHeaders",
    "Backlog",
    "Browses",
    "Capabilities",
    "Code",
    "Counting",
    "DIED",
    "Dates",
    "DelayChannel",
    "Deletes",
    "Delivery",
    "Describes",
    "Drift",
    "Fact",
    "Fault",
    "HandOff",
    "Inspects",
    "KeepsInboxes",
    "Leasing",
    "Level",
    "Listener",
    "NONE",
    "OK",
    "Ordering",
    "Outcome",
    "Outgoing",
    "MovesAll",
    "Purges",
    "RELEASE",
    "Reject",
    "Release",
    "Replies",
    "Reply",
    "ReplyInbox",
    "ReplyTo",
    "Resource",
    "Retry",
    "STALE",
    "Scans",
    "Scope",
    "Settlement",
    "Status",
    "Subscription",
    "Topology",
    "Trait",
    "Transacts",
    "Verdict",
    "Window",
    "rejected",
    "unknown",
]
