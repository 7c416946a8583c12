"""What librdkafka's error codes mean to us: one table, for outcomes, exceptions and reports alike."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from atleastonce.contract import Code, Fault, Outcome, Scope, Status
from atleastonce.errors import AtLeastOnceError, BrokerUnavailable, ConfigurationError, NotFound, PermissionDenied

_E = KafkaError

# code -> (ours, whether the same call may succeed later)
_TABLE: dict[int, tuple[Code, bool]] = {
    _E.UNKNOWN_TOPIC_OR_PART: (Code.NOT_FOUND, False),
    _E._UNKNOWN_TOPIC: (Code.NOT_FOUND, False),
    _E._UNKNOWN_PARTITION: (Code.NOT_FOUND, False),
    _E._UNKNOWN_GROUP: (Code.NOT_FOUND, False),
    _E.GROUP_ID_NOT_FOUND: (Code.NOT_FOUND, False),
    _E.MSG_SIZE_TOO_LARGE: (Code.TOO_LARGE, False),
    _E.INVALID_MSG_SIZE: (Code.TOO_LARGE, False),
    _E.TOPIC_EXCEPTION: (Code.INVALID, False),
    _E.INVALID_MSG: (Code.INVALID, True),  # a checksum that did not match on arrival
    _E.INVALID_RECORD: (Code.INVALID, False),
    _E.INVALID_TIMESTAMP: (Code.INVALID, False),
    _E.INVALID_TRANSACTION_TIMEOUT: (Code.INVALID, False),
    _E.INVALID_CONFIG: (Code.INVALID, False),
    _E.INVALID_PARTITIONS: (Code.INVALID, False),
    _E.INVALID_REPLICATION_FACTOR: (Code.INVALID, False),
    _E.INVALID_REQUEST: (Code.INVALID, False),
    _E.INVALID_REQUIRED_ACKS: (Code.INVALID, False),
    _E.POLICY_VIOLATION: (Code.INVALID, False),
    _E.UNSUPPORTED_FOR_MESSAGE_FORMAT: (Code.INVALID, False),
    _E._INVALID_ARG: (Code.INVALID, False),
    _E.OFFSET_METADATA_TOO_LARGE: (Code.INVALID, False),
    _E.TOPIC_AUTHORIZATION_FAILED: (Code.PERMISSION, False),
    _E.GROUP_AUTHORIZATION_FAILED: (Code.PERMISSION, False),
    _E.CLUSTER_AUTHORIZATION_FAILED: (Code.PERMISSION, False),
    _E.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: (Code.PERMISSION, False),
    _E.SASL_AUTHENTICATION_FAILED: (Code.PERMISSION, False),
    _E._AUTHENTICATION: (Code.PERMISSION, False),
    _E.SECURITY_DISABLED: (Code.PERMISSION, False),
    _E.TOPIC_ALREADY_EXISTS: (Code.CONFLICT, False),
    _E._CONFLICT: (Code.CONFLICT, False),
    _E.INCONSISTENT_GROUP_PROTOCOL: (Code.CONFLICT, False),
    _E._QUEUE_FULL: (Code.OVERLOADED, True),
    _E.THROTTLING_QUOTA_EXCEEDED: (Code.OVERLOADED, True),
    _E._MSG_TIMED_OUT: (Code.TIMEOUT, True),
    _E._TIMED_OUT: (Code.TIMEOUT, True),
    _E._TIMED_OUT_QUEUE: (Code.TIMEOUT, True),
    _E.REQUEST_TIMED_OUT: (Code.TIMEOUT, True),
    _E.ILLEGAL_GENERATION: (Code.STALE, False),
    _E.UNKNOWN_MEMBER_ID: (Code.STALE, False),
    _E.FENCED_INSTANCE_ID: (Code.STALE, False),
    _E.REBALANCE_IN_PROGRESS: (Code.STALE, True),
    _E._ASSIGNMENT_LOST: (Code.STALE, False),
    _E._DESTROY: (Code.CLOSED, False),
    _E._PURGE_QUEUE: (Code.CLOSED, True),
    _E._PURGE_INFLIGHT: (Code.CLOSED, True),
}
_UNAVAILABLE = (
    _E._TRANSPORT,
    _E._ALL_BROKERS_DOWN,
    _E._RESOLVE,
    _E._WAIT_COORD,
    _E._NODE_UPDATE,
    _E._SSL,
    _E._RETRY,
    _E._STATE,
    _E.BROKER_NOT_AVAILABLE,
    _E.LEADER_NOT_AVAILABLE,
    _E.NOT_LEADER_FOR_PARTITION,
    _E.REPLICA_NOT_AVAILABLE,
    _E.NETWORK_EXCEPTION,
    _E.COORDINATOR_LOAD_IN_PROGRESS,
    _E.COORDINATOR_NOT_AVAILABLE,
    _E.NOT_COORDINATOR,
    _E.NOT_ENOUGH_REPLICAS,
    _E.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    _E.NOT_CONTROLLER,
    _E.KAFKA_STORAGE_ERROR,
    _E.PREFERRED_LEADER_NOT_AVAILABLE,
    _E.ELIGIBLE_LEADERS_NOT_AVAILABLE,
    _E.UNSTABLE_OFFSET_COMMIT,
    _E.UNKNOWN_LEADER_EPOCH,  # a restarted broker that has not heard of the latest election
    _E.FENCED_LEADER_EPOCH,
)
_TABLE |= dict.fromkeys(_UNAVAILABLE, (Code.UNAVAILABLE, True))

_SUBSCRIPTION = (Code.STALE, Code.CLOSED)
_CONNECTION = (Code.UNAVAILABLE, Code.TIMEOUT, Code.PERMISSION)


def fault(error: KafkaError) -> Fault:
    """Classify one error of the client or broker."""
    code, retryable = _TABLE.get(error.code(), (Code.INTERNAL, error.retriable()))
    if error.fatal():
        return Fault(code, True, Scope.CONNECTION, f"{error.name()}: {error.str()}")
    scope = Scope.MESSAGE
    if code in _SUBSCRIPTION:
        scope = Scope.SUBSCRIPTION
    elif code in _CONNECTION and error.code() != _E.TOPIC_AUTHORIZATION_FAILED:
        scope = Scope.CONNECTION
    return Fault(code, retryable, scope, f"{error.name()}: {error.str()}")


# A publish that ended with one of these is certainly not in the log, and would not be if repeated. All the rest is
# unknown: the broker may have it.
_REFUSED = (Code.NOT_FOUND, Code.TOO_LARGE, Code.INVALID, Code.PERMISSION)


def publish_outcome(error: KafkaError) -> Outcome:
    """How a publish ended that the client reports as failed."""
    found = fault(error)
    refused = found.code in _REFUSED and not found.retryable and found.scope is Scope.MESSAGE
    return Outcome(Status.REJECTED if refused else Status.UNKNOWN, found)


def kafka_error(error: BaseException) -> KafkaError | None:
    """The client's error inside an exception, if there is one."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return None


def classify(error: BaseException) -> Fault:
    """`Adapter.classify`."""
    inner = kafka_error(error)
    if inner is not None:
        return fault(inner)
    if isinstance(error, BufferError):
        return Fault(Code.OVERLOADED, True, Scope.CONNECTION, "the client's queue of unconfirmed messages is full")
    if isinstance(error, TimeoutError):
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, str(error))
    if isinstance(error, (TypeError, ValueError)):
        return Fault(Code.INVALID, False, Scope.MESSAGE, str(error))
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {error}")


def as_exception(error: BaseException, doing: str) -> AtLeastOnceError:
    """The public exception for a failed question or command to the broker."""
    if isinstance(error, AtLeastOnceError):
        return error
    found = classify(error)
    text = f"Kafka: {doing}: {found.detail}"
    if found.code is Code.NOT_FOUND:
        return NotFound(text)
    if found.code is Code.PERMISSION:
        return PermissionDenied(text)
    if found.code in (Code.INVALID, Code.CONFLICT):
        return ConfigurationError(text)
    return BrokerUnavailable(text)
