"""What goes back of one list of dead letters."""

from __future__ import annotations

from atleastonce.contract import Delivery
from atleastonce.message import Message
from atleastonce.patterns.redrive.letters import Letter


class Taken:
    """What goes back of one list: in each of these lists at the same place.

    Attributes:
        deliveries: as they were read.
        letters: for whoever is asked or told of each; empty where nobody is, which is cheaper.
        copies: to be sent; empty until they are made.
        redrives: how often each of the copies came back before.
    """

    __slots__ = ("copies", "deliveries", "letters", "redrives")

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.letters: list[Letter] = []
        self.copies: list[Message] = []
        self.redrives: list[int] = []

    def __len__(self) -> int:
        return len(self.deliveries)
