"""Lag: what waits for a consumer in its source, in its retry channels, and in its dead letters, and of which keys."""

from atleastonce.lag.counts import Lag, backlog, measure
from atleastonce.lag.keys import Looks, Sample, named
from atleastonce.lag.places import Place, Role, places

__all__ = ["Lag", "Looks", "Place", "Role", "Sample", "backlog", "measure", "named", "places"]
