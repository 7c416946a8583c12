"""Broker addresses: taken apart exactly, and never shown with what is secret in them."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atleastonce.errors import ConfigurationError
from atleastonce.urls import BrokerUrl, is_secret, mask, mask_url

SECRET = "hunter2SECRET"


def test_an_address_is_taken_apart() -> None:
    url = BrokerUrl.parse("RabbitMQ://user:p%40ss@a:5672,b/%2Fvhost?heartbeat=30&x=&plus=a+b%2B#"[:-1])
    assert url.scheme == "rabbitmq"
    assert (url.user, url.password) == ("user", "p@ss")
    assert url.hosts == (("a", 5672), ("b", None))
    assert url.path == "/vhost"
    assert url.query == {"heartbeat": "30", "x": "", "plus": "a+b+"}
    assert url.host_ports(1) == ["a:5672", "b:1"]


@pytest.mark.parametrize(
    ("text", "hosts", "path"),
    [
        ("memory://", (), ""),
        ("memory://name", (("name", None),), ""),
        ("sqlite:///queue.db", (), "queue.db"),
        ("sqlite:////tmp/a b@c.db", (), "/tmp/a b@c.db"),
        ("kafka://[::1]:9092,[fe80::2]", (("::1", 9092), ("fe80::2", None)), ""),
        ("kafka://a:1,,b:2,", (("a", 1), ("b", 2)), ""),
        (" kafka://a:1\n", (("a", 1),), ""),
        ("nats://münchen:4222", (("münchen", 4222),), ""),
    ],
)
def test_hosts_and_paths(text: str, hosts: tuple[tuple[str, int | None], ...], path: str) -> None:
    url = BrokerUrl.parse(text)
    assert (url.hosts, url.path, url.user, url.password) == (hosts, path, None, None)
    again = BrokerUrl.parse(str(url))
    assert (again.hosts, again.path) == (hosts, path)


def test_ipv6_hosts_keep_their_brackets_where_a_port_follows() -> None:
    assert BrokerUrl.parse("kafka://[::1],[::2]:7").host_ports(9) == ["[::1]:9", "[::2]:7"]
    assert str(BrokerUrl.parse("kafka://[::1]:9092")) == "kafka://[::1]:9092/"


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [
        ("x://u:p@ss@h", "u", "p@ss"),
        ("x://u:a:b@h", "u", "a:b"),
        ("x://:p@h", "", "p"),
        ("x://u:@h", "u", ""),
        ("x://token@h", "token", None),
        ("x://u:p[w]@h", "u", "p[w]"),
        ("x://u:%E2%9C%93@h", "u", "✓"),
        ("x://u:p w@h", "u", "p w"),
    ],
)
def test_users_and_passwords(text: str, user: str, password: str | None) -> None:
    url = BrokerUrl.parse(text)
    assert (url.user, url.password, url.hosts) == (user, password, (("h", None),))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "write it as scheme://host:port"),
        ("localhost:9092", "write it as scheme://host:port"),
        ("://h", "write it as scheme://host:port"),
        ("9x://h", "write it as scheme://host:port"),
        ("kafka://h:99999", '"h:99999" is no host:port'),
        ("kafka://h:0", '"h:0" is no host:port'),
        ("kafka://h:", '"h:" is no host:port'),
        ("kafka://h:1:2", '"h:1:2" is no host:port'),
        ("kafka://h:port", '"h:***" is no host:port; a user and a password stand before the host'),
        ("kafka://h:-1", '"h:***" is no host:port'),
        ("kafka://u:p@h:port", '"h:port" is no host:port'),
        ("kafka://[::1", '"[::1" is no host:port'),
        ("kafka://::1", '"::1" is no host:port'),
        ("kafka://a b", '"a b" is no host:port'),
        ("kafka://h?a=1&b=2&a=3", 'option "a" is given twice'),
        ("kafka://h?a=1&%61=3", 'option "a" is given twice'),
        ("sqlite:///a#b.db", "%23"),
        ("kafka://h\nx", "control character"),
        ("kafka://h\x00", "control character"),
    ],
)
def test_a_bad_address_is_told_in_one_line(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerUrl.parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_is_text() -> None:
    with pytest.raises(ConfigurationError, match="not a int"):
        BrokerUrl.parse(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        f"kafka://u:{SECRET}@h:99999",
        f"kafka://u:{SECRET}@b:{SECRET}@h:99999",
        f"kafka://u:x/{SECRET}@h",
        f"kafka://u:1/{SECRET}@h",
        f"kafka://u:{SECRET}/x@h",
        f"kafka://u:1?{SECRET}@h",
        f"kafka://u:{SECRET}?x@h",
        f"kafka://u:1#{SECRET}@h",
        f"kafka://u:{SECRET} x@h:0",
        f"kafka://u:x {SECRET}@h:0",
        f"kafka://u:x\n{SECRET}@h",
        f"kafka://u:{SECRET}\n@h",
        f"kafka://u:x\u2028{SECRET}@h:0",
        f"kafka://h:0?sasl.password={SECRET}",
        f"kafka://h:0?sasl.p%61ssword={SECRET}",
        f"kafka://h?a=1&a=2&token={SECRET}",
        f"u:{SECRET}@h",
        f"{SECRET}@h",
        f"sqs://KEY:{SECRET}",
        f"sqs://KEY:x/{SECRET}",
        f"sqs://KEY:x?{SECRET}",
        f"sqs://KEY:x?region={SECRET}",
        f"sqs://KEY:x#{SECRET}",
        f"sqs://KEY:x,{SECRET}",
        f"sqs://h,KEY:{SECRET}",
        f"sqs://KEY:1{SECRET}",
        f"KEY:{SECRET}",
    ],
)
def test_a_bad_address_does_not_tell_its_password(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerUrl.parse(text)
    assert SECRET not in str(caught.value)
    assert SECRET not in mask_url(text)


SECRETS = st.text(min_size=6, max_size=30).filter(lambda s: len(set(s)) > 3)


@given(secret=SECRETS, encoded=st.booleans(), where=st.sampled_from(["password", "token", "option", "encoded option"]))
def test_no_form_of_an_address_shows_a_secret(secret: str, encoded: bool, where: str) -> None:
    assume(secret.strip() == secret)
    typed = quote(secret, safe="") if encoded or "option" in where else secret
    text = {
        "password": f"kafka://us:{typed}@ho:77/vv?oo=11",
        "token": f"nats://{typed}@ho:77/vv?oo=11",
        "option": f"kafka://ho:77/vv?oo=11&sasl.password={typed}",
        "encoded option": f"kafka://ho:77/vv?%73ecret={typed}&oo=11",
    }[where]
    assume(secret not in "kafka://us:***@ho:77/vv?oo=11&sasl.password=***&secret=***")
    shown = [mask_url(text)]
    try:
        url = BrokerUrl.parse(text)
    except ConfigurationError as error:
        shown.append(str(error))
        assert not encoded, "an encoded secret is always taken"
    else:
        shown += [str(url), repr(url), f"{url}", repr([url])]
        if encoded or "option" in where:
            held = {"password": url.password, "token": url.user}.get(where) or "".join(url.query.values())
            assert secret in held
    for one in shown:
        assert secret not in one
        assert quote(secret, safe="") not in one
        assert typed not in one


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("no connection to amqp://u:p@ss@h:5672/ yet", "no connection to amqp://u:***@h:5672/ yet"),
        ("nats://tok@h and redis://:pw@h/0", "nats://***@h and redis://:***@h/0"),
        ("?user=a&sasl.password=b&x=c", "?user=a&sasl.password=***&x=c"),
        ("host=db password=hunter2 port=1", "host=db password=*** port=1"),
        ("{'sasl.password': 'a b', 'x': 1}", "{'sasl.password': ***, 'x': 1}"),
        ('{"client_secret": "a b", "x": 1}', '{"client_secret": ***, "x": 1}'),
        ("Token='a b'", "Token=***"),
        ("an invalid password: it is too short", "an invalid password: it is too short"),
        ("if password == other", "if password == other"),
        ("a@b.c wrote to https://x.y/z", "a@b.c wrote to https://x.y/z"),
        ("plain text\nin two lines", "plain text\nin two lines"),
        ("", ""),
    ],
)
def test_secrets_in_any_text_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked


@pytest.mark.parametrize("text", ["://" * 6000 + "@ ", "token" * 4000 + "=", "?a" * 9000 + "=", "password='" * 3000])
def test_masking_is_quick_on_text_made_up_to_be_slow(text: str) -> None:
    import time

    begin = time.process_time()
    mask(text)
    assert time.process_time() - begin < 1.0


def test_names_of_secret_options() -> None:
    for name in (
        "password",
        "sasl.password",
        "SSL.KEY.PEM",
        "aws_secret_access_key",
        "sas_token",
        "credentials",
        "pwd",
    ):
        assert is_secret(name), name
    for name in ("heartbeat", "sasl.username", "acks", "client.id"):
        assert not is_secret(name), name
