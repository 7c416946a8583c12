"""What a broker says of its own settings, as far as a promise of ours rests on them, in words that hold for every broker."""

from __future__ import annotations

import enum

import msgspec


class Trait(enum.Enum):
    """What a `Fact` is about; what `Fact.amount` then is."""

    RETENTION = "retention"
    """What waits for longer than ``amount`` seconds is removed, whether or not it was read."""
    MAX_BYTES = "max-bytes"
    """Messages above ``amount`` bytes are refused; ``detail`` is ``"most"`` where no channel of this broker takes larger ones."""
    DROPS = "drops"
    """Beyond ``amount`` (in the setting's own unit) the oldest are removed to make room."""
    COMPACTS = "compacts"
    """Of the messages of one key only the last is kept."""
    NET = "net"
    """After ``amount`` hand-outs the broker itself takes the message away, to ``detail``; "" for nowhere."""
    NET_POWERLESS = "net-powerless"
    """The broker may not move messages to where its net leads."""
    HOLDS = "holds"
    """Once ``amount`` messages are out or wait for a retry, nothing more is handed out."""
    VANISHES = "vanishes"
    """It is removed, with what is in it, when nobody used it for ``amount`` seconds."""
    REFUSES = "refuses"
    """No publish can be confirmed: more copies are asked for than there are."""
    DENIED = "denied"
    """We may not do ``found`` to it; ``setting``, or ``detail``, is what to grant."""
    ONE_COPY = "one-copy"
    """It is kept on one node alone, though there are ``amount`` of them."""
    ONE_NODE = "one-node"
    """It is kept on one node, and there is no other."""
    ONE_CONFIRMS = "one-confirms"
    """There are ``amount`` copies, and a publish may be confirmed when one of them has it."""
    UNCLEAN = "unclean"
    """A copy that lacks what was confirmed may become the leader."""
    VOLATILE = "volatile"
    """Kept in memory alone: a restart of the broker loses it."""
    LATE_SYNC = "late-sync"
    """Confirmed before the disk has it: a power cut loses up to ``amount`` seconds (None: as much as the system buffered)."""
    EVICTS = "evicts"
    """Whole channels are removed when memory gets short."""
    PROCESS = "process"
    """It lives in this process, and ends with it."""
    AUTO_CREATES = "auto-creates"
    """A channel is made by being asked for: a misspelt name is no error, for other clients."""


class Fact(msgspec.Struct, frozen=True):
    """One setting of one channel, or of the broker.

    Attributes:
        name: of the channel or source, as `Source.name` has it; the broker's address where it holds for all.
        trait: what it means.
        setting: the broker's name for it.
        found: its value, as the broker shows it.
        amount: its value as a number, in the trait's unit; None where it has none.
        detail: see the trait.
    """

    name: str
    trait: Trait
    setting: str
    found: str
    amount: float | None = None
    detail: str = ""
