"""Dead letters and their way back: look at them, group them, choose some, redrive or purge those, keep the rest.

`DeadLetters` is the whole of it, from `Broker.dead_letters`; the functions beside it are its parts.
"""

from atleastonce.patterns.redrive.accounts import Purged, Redriven
from atleastonce.patterns.redrive.dead_letters import DeadLetters
from atleastonce.patterns.redrive.groups import Group, Groups
from atleastonce.patterns.redrive.letters import Letter, read_letters
from atleastonce.patterns.redrive.moves import purge, redrive, way_back
from atleastonce.patterns.redrive.native import redrive_natively
from atleastonce.patterns.redrive.selection import Selection

__all__ = [
    "DeadLetters",
    "Group",
    "Groups",
    "Letter",
    "Purged",
    "Redriven",
    "Selection",
    "purge",
    "read_letters",
    "redrive",
    "redrive_natively",
    "way_back",
]
