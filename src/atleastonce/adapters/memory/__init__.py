"""The memory broker: every promise of a real one except durability. For tests, demos and single-process pipelines."""

from atleastonce.adapters.memory.adapter import MemoryAdapter
from atleastonce.adapters.memory.broker import MemoryBroker, forget

__all__ = ["MemoryAdapter", "MemoryBroker", "forget"]
