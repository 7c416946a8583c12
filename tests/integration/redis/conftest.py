"""Puts this folder's `redis_kit` within reach of its tests, and names that no other run uses."""

import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

pytest.importorskip("redis", reason="redis is not installed")

from redis.asyncio import Redis

from atleastonce.channels import Queue, Source

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def source() -> Callable[..., Source]:
    """Queues as sources, under names of this test alone: the broker is shared."""
    run = uuid.uuid4().hex[:8]
    return lambda name="q", **more: Source(Queue(f"redis.{name}.{run}", **more))


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator[Redis]:
    """redis-py's own client."""
    async with Redis.from_url(redis_url, socket_timeout=15) as client:
        yield client
