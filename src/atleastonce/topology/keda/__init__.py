"""KEDA: a ``ScaledObject`` for a service, with a trigger for each place from which it takes messages.

KEDA allows one ``ScaledObject`` for a workload, and a service is one workload: so it is one object with many triggers, and the
largest of their demands counts. Dead letters are no trigger: they wait for a person.
"""

from atleastonce.topology.keda.document import keda
from atleastonce.topology.keda.scaling import Scaling

__all__ = ["Scaling", "keda"]
