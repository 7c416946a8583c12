"""Addresses from the environment, what `ALO_REQUIRE` demands, and URLs that give nothing away."""

import pytest

from atleastonce.brokers import NAMES, RequiredBrokersMissing, Unavailable, status, up
from atleastonce.brokers.addresses import DEFAULT_PORTS, endpoint, from_environment, masked, required, variable


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.delenv("ALO_REQUIRE", raising=False)


def test_an_address_is_read_from_its_variable() -> None:
    environ = {"ALO_KAFKA_URL": " kafka://broker:9092 ", "ALO_REDIS_URL": ""}
    assert from_environment("kafka", environ) == "kafka://broker:9092"
    assert from_environment("redis", environ) is None
    assert from_environment("nats", environ) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", set()),
        ("kafka", {"kafka"}),
        (" kafka , rabbitmq,", {"kafka", "rabbitmq"}),
        ("all", {"kafka", "rabbitmq", "nats"}),
        ("postgres", set()),  # not asked for in this call
    ],
)
def test_required(value: str, expected: set[str]) -> None:
    assert required(["kafka", "rabbitmq", "nats"], {"ALO_REQUIRE": value}) == expected


@pytest.mark.parametrize("value", ["kafak", "kafka,kafak", "all,kafak"])
def test_a_misspelt_name_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"ALO_REQUIRE names 'kafak': there are {', '.join(NAMES)} and all"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        required(["kafka"], {"ALO_REQUIRE": value})
    monkeypatch.setenv("ALO_REQUIRE", value)
    with pytest.raises(ValueError, match=f"^{expected}$"):
        up([])  # before anything is started


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rabbitmq://guest:s3cret@127.0.0.1:5672/", "rabbitmq://guest:***@127.0.0.1:5672/"),
        ("redis://:s3cret@cache:6379/0?ssl=1", "redis://:***@cache:6379/0?ssl=1"),
        ("nats://token@127.0.0.1:4222", "nats://***@127.0.0.1:4222"),
        ("postgresql://postgres@127.0.0.1:5432/postgres", "postgresql://postgres@127.0.0.1:5432/postgres"),
        ("amqp://user:p%40ss:word@host", "amqp://user:***@host"),
        ("kafka://127.0.0.1:9092", "kafka://127.0.0.1:9092"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("name", "url", "expected"),
    [
        ("kafka", "kafka://one:9092,two:9092", ("one", 9092)),
        ("rabbitmq", "rabbitmq://guest:a%40b@host/%2F", ("host", 5672)),
        ("postgres", "postgresql://postgres@[::1]:5433/postgres", ("::1", 5433)),
        ("toxiproxy", "http://127.0.0.1", ("127.0.0.1", 8474)),
    ],
)
def test_endpoint(name: str, url: str, expected: tuple[str, int]) -> None:
    assert endpoint(name, url) == expected


@pytest.mark.parametrize("url", ["9092", "kafka://", "kafka://host:port"])
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(Unavailable, match="ALO_KAFKA_URL is no address"):
        endpoint("kafka", url)


def test_every_broker_has_a_default_port() -> None:
    assert set(DEFAULT_PORTS) == set(NAMES)


def test_an_address_that_does_not_answer_is_no_reason_to_start_another(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("ALO_RABBITMQ_URL", f"rabbitmq://user:s3cret@127.0.0.1:{unused_port}/")
    found = up(["rabbitmq"], progress=False)
    assert not found
    assert "ALO_RABBITMQ_URL=rabbitmq://user:***@127.0.0.1" in found.unavailable["rabbitmq"].reason
    assert "s3cret" not in str(found.unavailable["rabbitmq"])
    with pytest.raises(Unavailable, match="does not answer"):
        found["rabbitmq"]


def test_require_makes_it_an_error(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setenv("ALO_NATS_URL", f"nats://127.0.0.1:{unused_port}")
    monkeypatch.setenv("ALO_REQUIRE", "nats")
    with pytest.raises(RequiredBrokersMissing, match=r"required nats: ALO_NATS_URL=.* does not answer") as caught:
        up(["nats"], progress=False)
    assert [missing.name for missing in caught.value.missing] == ["nats"]


def test_an_address_from_the_environment_is_not_ours_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALO_REDIS_URL", "redis://:s3cret@10.0.0.1:6379")
    redis = status()["redis"]
    assert redis.origin == "environment"
    assert redis.pid is None
    assert "s3cret" not in repr(redis)
    for verb in (redis.stop, redis.kill, redis.pause, redis.resume):
        with pytest.raises(Unavailable, match="comes from the environment"):
            verb()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown broker 'kafak': there are kafka, rabbitmq"):
        up(["kafak"])


def test_a_wrong_origin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALO_BROKERS_FROM", "podman")
    assert "expected native or container" in up(["nats"], progress=False).unavailable["nats"].reason


@pytest.fixture
def unused_port() -> int:
    from atleastonce.brokers.ports import free_port

    return free_port()
