"""From a URL to what both drivers take: where, who, and how encrypted."""

from __future__ import annotations

import ssl
from typing import Any

from atleastonce.errors import ConfigurationError
from atleastonce.stores.options import only_known
from atleastonce.urls import BrokerUrl

PORT = 3306
SSL_MODES = ("disabled", "required", "verify-ca", "verify-identity")
_OPTIONS = ("ssl_mode", "ssl_ca", "ssl_cert", "ssl_key", "unix_socket")


class Address:
    """A parsed URL.

    Attributes:
        arguments: of ``pymysql.connect``; aiomysql says ``db`` for ``database``.
        tls: None for none.

    Raises:
        ConfigurationError: one line that says what to write.
    """

    def __init__(self, url: str) -> None:
        self._url = parsed = BrokerUrl.parse(url)
        if len(parsed.hosts) > 1:
            raise ConfigurationError(
                f'store URL "{parsed}": name one server; a proxy in front of several finds the primary'
            )
        if not parsed.path or "/" in parsed.path:
            raise ConfigurationError(f'store URL "{parsed}": write it as mysql://user:password@host/database')
        only_known(parsed.query, _OPTIONS, "mysql")
        host, port = (parsed.hosts or (("localhost", None),))[0]
        self.tls = _tls(parsed)
        self.arguments: dict[str, Any] = {
            "host": host,
            "port": port or PORT,
            "user": parsed.user,
            "password": parsed.password or "",
            "database": parsed.path,
            "charset": "utf8mb4",
            "unix_socket": parsed.query.get("unix_socket"),
            "autocommit": True,
        }

    @property
    def use(self) -> str:
        """The statement that makes its database the default."""
        return "USE `{}`".format(self.arguments["database"].replace("`", "``"))

    def __str__(self) -> str:
        return str(self._url)


def _tls(url: BrokerUrl) -> ssl.SSLContext | None:
    query = url.query
    mode = query.get("ssl_mode", "verify-identity" if any(name.startswith("ssl_") for name in query) else "disabled")
    if mode not in SSL_MODES:
        raise ConfigurationError(f'store URL "{url}": ssl_mode={mode}; give one of {", ".join(SSL_MODES)}')
    if mode == "disabled":
        return None
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca"))
        if "ssl_cert" in query:
            context.load_cert_chain(query["ssl_cert"], query.get("ssl_key"))
    except OSError as error:  # ssl.SSLError too
        raise ConfigurationError(f'store URL "{url}": its certificates cannot be read: {error}') from None
    context.check_hostname = mode == "verify-identity"
    if mode == "required":
        context.verify_mode = ssl.CERT_NONE
    return context
