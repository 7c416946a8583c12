"""The URL and the options of redis://."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("redis", reason="redis is not installed")

from redis.asyncio.connection import SSLConnection

from atleastonce.adapters import open_adapter
from atleastonce.adapters.redis_streams.config import Config
from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl


def config(url: str, **options: Any) -> Config:
    return Config.build(BrokerUrl.parse(url), options)


def test_an_address_alone_is_enough() -> None:
    assert config("redis://").hosts == (("localhost", 6379),)
    assert config("valkey://one,two:7000/3").hosts == (("one", 6379), ("two", 7000))
    assert config("redis://h/3").db == 3


def test_options_come_from_the_url_and_from_code() -> None:
    given = config("redis://h?lease=5&poll=100ms&dedupe=2m", max_message_bytes="1MiB")
    assert (given.lease, given.poll, given.dedupe, given.max_message_bytes) == (5.0, 0.1, 120.0, 2**20)
    assert config("redis://h?lease=5s", lease="7s").lease == 7.0


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("redis://h?leese=5s", {}, 'did you mean "lease"'),
        ("redis://h?lease=soon", {}, "no duration"),
        ("redis://h?lease=1ms", {}, "at least 0.1"),
        ("redis://h/orders", {}, "no database"),
        ("redis://h?cafile=x", {}, "rediss://"),
        ("rediss://h?certfile=/nowhere", {}, 'certfile "/nowhere" cannot be read: No such file'),
        ("redis://h", {"connection": {"ssl_ca_certs": "x"}}, "rediss://"),
        ("redis://h", {"connection": {"host": "x"}}, "is set by the URL"),
        ("redis://h", {"connection": 3}, "mapping"),
        ("redis://h?connection=x", {}, "given in code"),
        ("redis://h?max_message_bytes=1GiB", {}, "512MiB"),
        ("redis://h?client_name=a%20b", {}, "letters"),
        ("redis://h?body_field=alo-key", {}, "letters"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(url: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as refused:
        config(url, **options)
    assert "\n" not in str(refused.value)


def test_unknown_arguments_of_a_connection_are_refused() -> None:
    given = config("redis://h", connection={"colour": "red"})
    with pytest.raises(ConfigurationError, match="colour"):
        given.connect("h", 1, "test")


def test_connections_never_repeat_a_command_by_themselves() -> None:
    connection = config("redis://u:p@h/2").connect("h", 1, "test")
    assert connection.retry.get_retries() == 0
    assert (connection.db, connection.username, connection.protocol) == (2, "u", 2)
    secure = config("rediss://h", connection={"ssl_check_hostname": True}).connect("h", 1, "test")
    assert isinstance(secure, SSLConnection)


def test_secrets_are_shown_nowhere() -> None:
    url = "redis://user:hidden@h:1/0"
    assert "hidden" not in repr(config(url)) + repr(open_adapter(url))
