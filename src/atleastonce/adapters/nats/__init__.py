"""NATS JetStream: streams, durable pull consumers, and a client whose reading and writing are lists."""

from atleastonce.adapters.nats.adapter import NatsAdapter

__all__ = ["NatsAdapter"]
