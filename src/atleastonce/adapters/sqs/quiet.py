"""Keeps credentials out of botocore's log: at DEBUG it writes down each request as it is signed, session token and all."""

from __future__ import annotations

import logging
import re
from typing import Final

_SECRET: Final = re.compile(
    # A header in a signed request or in a dictionary's repr; and what STS answers with, in XML and in JSON.
    r"""(?ix)
    ( x-amz-security-token ["']? \s? [:=] \s? b? ["']?
    | <(?:SessionToken|SecretAccessKey)>
    | "(?:sessionToken|secretAccessKey)" \s? : \s? "
    )
    [^\s"',;<&}]+
    """
)


class _Masked(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        masked = _SECRET.sub(r"\1***", text)
        if masked != text:
            record.msg, record.args = masked, ()
        return True


_MASKED: Final = _Masked("atleastonce")


def mask_botocore() -> None:
    """Mask what botocore's loggers write from now on. Idempotent.

    On each of them, since a logger's filters do not see what its children write: so it is called when a client was made, and
    with it everything that logs.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "boto3"):
            logging.getLogger(name).addFilter(_MASKED)
