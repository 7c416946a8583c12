"""MySQL's statements and errors, without a server."""

from __future__ import annotations

import re

import pymysql
import pytest

from atleastonce import ConfigurationError, MySQLStore, PermissionDenied, StoreUnavailable
from atleastonce.contract import Code
from atleastonce.stores import ClaimRequest, Completion, Lease, new_token
from atleastonce.stores.mysql import faults, sql
from atleastonce.stores.mysql.address import Address
from atleastonce.stores.telling import as_error


@pytest.mark.parametrize(
    ("number", "code", "retryable", "told"),
    [
        (1213, Code.CONFLICT, True, StoreUnavailable),
        (1205, Code.CONFLICT, True, StoreUnavailable),
        (1020, Code.CONFLICT, True, StoreUnavailable),
        (2013, Code.UNAVAILABLE, True, StoreUnavailable),
        (1290, Code.UNAVAILABLE, True, StoreUnavailable),  # it became a replica
        (0, Code.UNAVAILABLE, True, StoreUnavailable),
        (1040, Code.OVERLOADED, True, StoreUnavailable),
        (1114, Code.OVERLOADED, True, StoreUnavailable),
        (3024, Code.TIMEOUT, True, StoreUnavailable),
        (1045, Code.PERMISSION, False, PermissionDenied),
        (1146, Code.NOT_FOUND, False, ConfigurationError),
        (1406, Code.INVALID, False, ConfigurationError),
        (9999, Code.INTERNAL, False, StoreUnavailable),
    ],
)
def test_what_an_error_means(number: int, code: Code, retryable: bool, told: type[Exception]) -> None:
    error = pymysql.err.OperationalError(number, "words")
    fault = faults.classify(error)
    assert (fault.code, fault.retryable) == (code, retryable)
    assert type(as_error(fault, "mysql store mysql://h/d")) is told


def test_anybody_elses_error_is_internal() -> None:
    fault = faults.classify(KeyError(1213))
    assert (fault.code, fault.retryable) == (Code.INTERNAL, False)
    assert faults.number_of(ValueError(1213)) is None


def test_no_value_reaches_a_statement_as_text() -> None:
    """Whatever a key holds, nothing of it can be read as SQL, nor as a placeholder of a driver."""
    statements = sql.Statements("alo")
    evil = "'; DROP TABLE alo_lease; -- %s {0} \\"
    lease = Lease("s'x", evil, b"'" * 16)
    request = ClaimRequest("s'x", evil, b"%'", token=b"\\" * 16)
    texts = [
        statements.claim([request]),
        statements.look([("s'x", evil)]),
        statements.extend([lease], 1),
        statements.release([lease]),
        *statements.complete([Completion(lease, b"%s';")]),
        statements.record("s'x", {evil: b"%"}, 1.0),
        statements.recorded("s'x", [evil]),
    ]
    for text in texts:
        assert "DROP" not in text
        assert "%" not in text
        assert ";" not in text
        assert text.isascii()
        assert re.sub(r"x'[0-9a-f]*'|'1970-01-01'|''", "", text).count("'") == 0


def test_results_are_split_before_a_packet_is_too_large() -> None:
    statements = sql.Statements("alo")
    items = [Completion(Lease("s", f"{n}", new_token()), b"x" * 65_536) for n in range(500)]
    found = statements.complete(items)
    assert len(found) > 1
    assert max(map(len, found)) < 16 << 20


def test_an_address() -> None:
    address = Address("mariadb://u%40x:p%2Fw@[::1]:3307/shop?unix_socket=/run/s")
    assert address.tls is None
    assert address.arguments["user"] == "u@x"
    assert address.arguments["password"] == "p/w"
    assert (address.arguments["host"], address.arguments["port"]) == ("::1", 3307)
    assert "p/w" not in str(address) + repr(MySQLStore("mysql://u:p%2Fw@h/shop"))
    verified = Address("mysql://h/shop?ssl_mode=verify-identity").tls
    assert verified is not None
    assert verified.check_hostname
    loose = Address("mysql://h/shop?ssl_mode=required").tls
    assert loose is not None
    assert not loose.check_hostname
