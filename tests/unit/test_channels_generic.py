"""Channels take their payload's type as a parameter, too."""

from __future__ import annotations

import pytest

from atleastonce import Channel, Queue, Topic


@pytest.mark.parametrize("kind", [Queue, Topic])
def test_a_channel_can_be_made_with_its_type_in_brackets(kind: type[Channel[int]]) -> None:
    channel = kind[int]("orders")  # type: ignore[index]
    assert channel == kind("orders")
    assert hash(channel) == hash(kind("orders"))
    with pytest.raises(AttributeError):
        channel.name = "other"
