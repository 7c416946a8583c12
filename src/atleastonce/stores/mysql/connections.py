"""The drivers' connections, of which an inbox can tell whether its handler closed them or the network did. Loads the drivers."""

from __future__ import annotations

from typing import Any

import aiomysql
from pymysql.connections import Connection

from atleastonce.errors import StoreUnavailable

_SSL = 1 << 11  # CLIENT_SSL, in what the server can do


class Awaited(aiomysql.Connection):  # type: ignore[misc]  # aiomysql ships no types
    """aiomysql's.

    Attributes:
        closed_on_purpose: by its user, while it was whole. The driver closes what was lost with the same method, out of a read.
    """

    closed_on_purpose = False
    _reading = 0

    async def _read_packet(self, *arguments: Any) -> Any:
        self._reading += 1
        try:
            return await super()._read_packet(*arguments)
        finally:
            self._reading -= 1

    def _close_on_cancel(self) -> None:
        self._reading += 1
        try:
            super()._close_on_cancel()
        finally:
            self._reading -= 1

    def close(self) -> None:
        if not self._reading and not self.closed:
            self.closed_on_purpose = True
        super().close()


class Encrypted(Awaited):
    """With TLS or not at all."""

    async def _request_authentication(self) -> None:
        # aiomysql would go on unencrypted, with the password.
        if not self.server_capabilities & _SSL:
            raise StoreUnavailable(_NO_TLS)
        await super()._request_authentication()


class Blocking(Connection):  # type: ignore[misc]  # PyMySQL ships no types either
    """PyMySQL's.

    Attributes:
        closed_on_purpose: by its user. The driver itself lets go of what was lost in another way.
    """

    closed_on_purpose = False

    def close(self) -> None:
        self.closed_on_purpose = True
        super().close()


_NO_TLS = "the server has no TLS, and ssl_mode asks for it"
