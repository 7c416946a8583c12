"""Request-reply: who asks (`Asker`), what travels (`letters`), and how answers find their way back."""

from atleastonce.patterns.replies.asker import Asker
from atleastonce.patterns.replies.letters import (
    MAX_ADDRESS,
    Answer,
    Failure,
    answer_of,
    failure_of,
    reply_of,
)
from atleastonce.patterns.replies.queue import QueueReplies, replies_of
from atleastonce.patterns.replies.results import Gathered, RequestStatus
from atleastonce.patterns.replies.table import Table

__all__ = [
    "MAX_ADDRESS",
    "Answer",
    "Asker",
    "Failure",
    "Gathered",
    "QueueReplies",
    "RequestStatus",
    "Table",
    "answer_of",
    "failure_of",
    "replies_of",
    "reply_of",
]
