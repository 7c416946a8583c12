"""Every rule of a check, with its words: the table in the docs is made from these."""

from __future__ import annotations

from typing import Final

from atleastonce.check.finding import Rule

# ------------------------------------------------------------------------------------------------------- the policy alone

DELAY_OVER_LIMIT: Final = Rule(
    "delay-over-limit",
    "refuse",
    "a delay of the chain is longer than the broker's waiting rooms can keep a message",
    "the hop could not be made, and the message would be tried for ever",
    "policy",
)
CHAIN_OUT_OF_TIME: Final = Rule(
    "chain-out-of-time",
    "refuse",
    "`give_up_after` is shorter than the chain's first delay",
    "no wait of the chain could end in time, so every failure is a dead letter at once, of stage `expired`",
    "policy",
)
FORGOTTEN_TOO_EARLY: Final = Rule(
    "forgotten-too-early",
    "refuse",
    "an idempotent consumer's `ttl` is shorter than its retry chain and `redrive_within` together",
    "a legal redelivery may come when its message is forgotten, and has its effect a second time",
    "policy",
)
CHAIN_CUT_SHORT: Final = Rule(
    "chain-cut-short",
    "warn",
    "`give_up_after` ends before the chain does",
    "the later attempts never run: the message is a dead letter of stage `expired` before them",
    "policy",
)
TIMEOUT_OVER_LEASE: Final = Rule(
    "timeout-over-lease",
    "refuse",
    "`timeout` is longer than the broker can leave a message with its worker",
    "another worker gets the message while the handler still runs",
    "policy",
)
TIMEOUT_OVER_SERVER_LIMIT: Final = Rule(
    "timeout-over-server-limit",
    "warn",
    "`timeout` is longer than the broker leaves a message with its worker, unless its limit was raised",
    "the broker takes back everything that the connection holds, and hands it out again",
    "policy",
)
IN_PLACE_OVER_LEASE: Final = Rule(
    "in-place-over-lease",
    "warn",
    "the tries in place, with their waits and timeouts, take longer than the lease can last",
    "the message is handed to another worker while it waits to be tried again here",
    "policy",
)
TIMEOUT_OF_A_THREAD: Final = Rule(
    "timeout-of-a-thread",
    "warn",
    "`timeout` on a `def` handler",
    "a thread cannot be stopped from outside: past its timeout a run is logged, and goes on and counts",
    "policy",
)
ORDER_IMPOSSIBLE: Final = Rule(
    "order-impossible",
    "refuse",
    "`fifo=True` on a broker that keeps no order",
    "messages of one key would come in any order",
    "policy",
)
ORDER_LOST_IN_CHAIN: Final = Rule(
    "order-lost-in-chain",
    "refuse",
    "order is asked for, and the chain waits in other channels",
    "a message that failed comes back behind later ones of its key",
    "policy",
)
ORDER_NOT_ACROSS: Final = Rule(
    "order-not-across",
    "refuse",
    "`ordered=` where several processes may have messages of one key",
    "each process would keep its own part in order, and they would overtake each other",
    "policy",
)
ORDER_WITH_LEASE: Final = Rule(
    "order-with-lease",
    "refuse",
    "`ordered=` together with `idempotency=Lease(...)`",
    "a message that waits for somebody else's lease is overtaken by those behind it",
    "policy",
)
CHAIN_OVER_LEASE: Final = Rule(
    "chain-over-lease",
    "refuse",
    "`ordered=` with a chain that takes longer than the lease can last",
    "the message is handed out again while it waits in its place, and its chain begins anew",
    "policy",
)
ORDER_IN_SINGLE_FILE: Final = Rule(
    "order-in-single-file",
    "note",
    "`ordered=` with more `concurrency` than parts, where the broker has one message of each out at a time",
    "no more keys run in parallel than there are parts, and each message costs a round trip",
    "policy",
)
ORDER_BY_PAYLOAD: Final = Rule(
    "order-by-payload",
    "note",
    "`ordered=` by something in the payload",
    "messages that share it and not the message key may be with two processes at a time",
    "policy",
)
CHANNEL_IN_TWO_ROLES: Final = Rule(
    "channel-in-two-roles",
    "refuse",
    "a handler reads a channel in which another one's retries wait",
    "they would be handled before they are due, by the wrong handler",
    "policy",
)
DEAD_LETTERS_CONSUMED: Final = Rule(
    "dead-letters-consumed",
    "warn",
    "a handler of the same service reads another one's dead letters",
    "nothing is left there to look at or to redrive, and what fails in both goes round",
    "policy",
)
NO_TRANSACTIONS: Final = Rule(
    "no-transactions",
    "refuse",
    "`transactions=True` on a broker that cannot publish and settle in one step",
    "a crash between the two would publish again, which is what was to be ruled out",
    "policy",
)
TWO_TRANSACTIONS: Final = Rule(
    "two-transactions",
    "refuse",
    "`transactions=True` together with `idempotency=`",
    "the broker's transaction and the store's are two, and a crash between them leaves one without the other: a message known as "
    "handled, of which nothing was published",
    "policy",
)
NO_DEAD_LETTERS: Final = Rule(
    "no-dead-letters",
    "note",
    "`dead_letter=None`",
    "what is given up is logged, counted as `dropped`, and lost",
    "policy",
)

# ---------------------------------------------------------------------------------------- what differs from a declaration

NAME_IMPOSSIBLE: Final = Rule(
    "name-impossible",
    "refuse",
    "a name or an option that the broker cannot have",
    "it cannot be created",
    "topology",
)
CHANNEL_MISSING: Final = Rule(
    "channel-missing",
    "refuse",
    "a channel or group that is not there, with `create=False`",
    "there is nothing to read, or nowhere to move what failed",
    "topology",
)
CHANNEL_TO_BE_MADE: Final = Rule(
    "channel-to-be-made",
    "note",
    "a channel or group that is not there yet",
    "the start creates it",
    "topology",
)
SETTING_UNSUPPORTED: Final = Rule(
    "setting-unsupported",
    "refuse",
    "a setting of a channel that the broker does not have, and that a promise rests on",
    "the promise would be broken in silence",
    "topology",
)
SETTING_IGNORED: Final = Rule(
    "setting-ignored",
    "warn",
    "a setting of a channel that the broker does not have",
    "it has no effect here",
    "topology",
)
SETTING_BREAKS: Final = Rule(
    "setting-breaks",
    "refuse",
    "an existing channel with other settings than it would be made with, and a promise rests on them: a queue that is not durable "
    "or not a quorum queue, no way to the dead letters, a retry room with another time to live, an ack wait that is too short, "
    "`max_deliver`, a subscription that pushes or filters",
    "delays, dead letters or messages would be lost",
    "topology",
)
SETTING_DIFFERS: Final = Rule(
    "setting-differs",
    "warn",
    "an existing channel with other settings than the code has",
    "it is used as it is",
    "topology",
)

# ------------------------------------------------------------------------------------------------- the broker's own settings

RETENTION_BELOW_DELAY: Final = Rule(
    "retention-below-delay",
    "refuse",
    "a retry channel keeps messages for less than their wait",
    "they are deleted before they are due",
    "settings",
)
RETENTION_NEAR_DELAY: Final = Rule(
    "retention-near-delay",
    "warn",
    "a retry channel keeps messages for less than a day beyond their wait",
    "a service that is down for that long loses its retries",
    "settings",
)
RETENTION_BELOW_CHAIN: Final = Rule(
    "retention-below-chain",
    "refuse",
    "the chain waits in the source itself, which keeps messages for less than the whole chain",
    "they are deleted before their last attempt, and never become dead letters",
    "settings",
)
DEAD_LETTERS_SHORT: Final = Rule(
    "dead-letters-short",
    "warn",
    "dead letters are kept for less long than the source keeps messages, or for less than a day",
    "they are gone before anybody looks. Where the broker's own net moves a message, its age counts from its first publish",
    "settings",
)
FORGOTTEN_BEFORE_REDRIVE: Final = Rule(
    "forgotten-before-redrive",
    "refuse",
    "an idempotent consumer's `ttl` is shorter than its retry chain and the time for which the broker keeps dead letters together, "
    "and no `redrive_within` says that they are redriven sooner",
    "a legal redelivery may come when its message is forgotten, and has its effect a second time",
    "settings",
)
FORGOTTEN_BEFORE_DELETED: Final = Rule(
    "forgotten-before-deleted",
    "warn",
    "an idempotent consumer's `ttl` is shorter than the broker keeps the source's messages",
    "what was handled and not settled comes again after a standstill of that length, when its message is forgotten: it has its "
    "effect a second time",
    "settings",
)
COPIES_TOO_SMALL: Final = Rule(
    "copies-too-small",
    "refuse",
    "a retry or dead-letter channel takes smaller messages than the source",
    "a large message that fails can neither be handled nor moved, and stays for ever",
    "settings",
)
COPIES_TIGHT: Final = Rule(
    "copies-tight",
    "warn",
    "a retry or dead-letter channel takes messages as large as the source's, and no larger",
    "the largest ones lose their diagnostics, or cannot be moved: a copy has up to 8 KiB of header fields more",
    "settings",
)
COPIES_COMPACTED: Final = Rule(
    "copies-compacted",
    "refuse",
    "a retry or dead-letter channel is compacted",
    "of the failures of one key only the last is kept",
    "settings",
)
SOURCE_COMPACTED: Final = Rule(
    "source-compacted",
    "warn",
    "the source is compacted",
    "of the messages of one key that wait, only the last is sure to be handled",
    "settings",
)
DROPS_WHEN_FULL: Final = Rule(
    "drops-when-full",
    "warn",
    "a channel removes its oldest messages when it is full",
    "what was confirmed and waits is lost, unseen",
    "settings",
)
NET_BELOW_ATTEMPTS: Final = Rule(
    "net-below-attempts",
    "refuse",
    "the broker's own dead-letter policy acts before the chain has ended",
    "the broker takes the message away before its last attempts, and tells no reason",
    "settings",
)
NET_BELOW_CRASH_LIMIT: Final = Rule(
    "net-below-crash-limit",
    "warn",
    "the broker's own dead-letter policy acts before `crash_limit`",
    "a message that ends its process is taken by the broker, without a reason, before it is a dead letter of stage `crash-loop`",
    "settings",
)
NET_ELSEWHERE: Final = Rule(
    "net-elsewhere",
    "warn",
    "the broker's own dead-letter policy leads elsewhere, or nowhere",
    "what it catches is not among the dead letters that `dlq list` shows",
    "settings",
)
NET_POWERLESS: Final = Rule(
    "net-powerless",
    "warn",
    "the broker may not publish to the dead letters, or not take from the source",
    "its net catches nothing: what ends its process is delivered for ever",
    "settings",
)
NOT_PERMITTED: Final = Rule(
    "not-permitted",
    "refuse",
    "the service's login may not read its source, or not write its retry and dead-letter channels",
    "the first failure could not be moved, and would be tried for ever",
    "settings",
)
RETRIES_HOLD_UP: Final = Rule(
    "retries-hold-up",
    "warn",
    "the number of messages that are out is limited for the whole group, and waiting retries count in it",
    "so many failing messages stop the source for all others",
    "settings",
)
NEVER_CONFIRMED: Final = Rule(
    "never-confirmed",
    "refuse",
    "more copies have to confirm a publish than there are",
    "no publish, retry or dead letter is ever confirmed",
    "settings",
)
CONFIRMED_BY_ONE: Final = Rule(
    "confirmed-by-one",
    "warn",
    "several copies are kept, and one of them is enough to confirm",
    "the loss of that one node loses what was confirmed",
    "settings",
)
UNCLEAN_LEADERS: Final = Rule(
    "unclean-leaders",
    "warn",
    "a copy that lacks messages may become the leader",
    "a failover loses what was confirmed",
    "settings",
)
ONE_COPY: Final = Rule(
    "one-copy",
    "warn",
    "one copy is kept, in a cluster of several nodes",
    "the loss of that node loses the channel",
    "settings",
)
ONE_NODE: Final = Rule(
    "one-node",
    "note",
    "one copy is kept, and there is one node",
    "the loss of its disk loses everything",
    "settings",
)
VOLATILE: Final = Rule(
    "volatile",
    "warn",
    "messages are kept in memory alone",
    "a restart of the broker loses what was confirmed",
    "settings",
)
LATE_SYNC: Final = Rule(
    "late-sync",
    "note",
    "a publish is confirmed before it is on the disk",
    "a power cut loses what was confirmed last",
    "settings",
)
EVICTS: Final = Rule(
    "evicts",
    "warn",
    "the broker removes data when its memory gets short",
    "whole channels vanish",
    "settings",
)
VANISHES: Final = Rule(
    "vanishes",
    "warn",
    "a channel or group is removed when nobody uses it",
    "a service that is down for that long loses what waits for it",
    "settings",
)
PROCESS_BOUND: Final = Rule(
    "process-bound",
    "note",
    "the broker lives in this process",
    "everything ends with it",
    "settings",
)
AUTO_CREATE: Final = Rule(
    "auto-create",
    "note",
    "the broker makes a channel when somebody asks for it",
    "a misspelt name is no error for other clients. A service of ours never makes one that way",
    "settings",
)

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
"""All of them, in the order above."""
