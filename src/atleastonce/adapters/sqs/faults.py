"""What an error of boto3, or the code of one item of a batch, means."""

from __future__ import annotations

import re
from typing import Any, Final

from atleastonce.contract import Code, Fault, Outcome, Scope, Status
from atleastonce.errors import (
    AtLeastOnceError,
    BrokerUnavailable,
    Closed,
    ConfigurationError,
    NotFound,
    PermissionDenied,
)
from atleastonce.urls import mask

_PREFIX: Final = "AWS.SimpleQueueService."
_CODES: Final[dict[str, tuple[Code, bool]]] = {
    **dict.fromkeys(
        ("NonExistentQueue", "QueueDoesNotExist", "NotFound", "NotFoundException"), (Code.NOT_FOUND, False)
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccessDeniedException",
            "AuthorizationError",
            "AuthorizationErrorException",
            "IncompleteSignature",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "InvalidSecurity",
            "InvalidSignatureException",
            "KmsAccessDenied",
            "KmsDisabled",
            "KmsInvalidKeyUsage",
            "KmsInvalidState",
            "KmsNotFound",
            "KmsOptInRequired",
            "MissingAuthenticationToken",
            "NotAuthorized",
            "OptInRequired",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        ),
        (Code.PERMISSION, False),
    ),
    # Fresh credentials come by themselves where a role gives them.
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired"), (Code.PERMISSION, True)),
    **dict.fromkeys(
        (
            "KmsThrottled",
            "KMSThrottling",
            "LimitExceeded",
            "OverLimit",
            "PurgeQueueInProgress",
            "RequestLimitExceeded",
            "RequestThrottled",
            "SlowDown",
            "Throttled",
            "ThrottledException",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
        ),
        (Code.OVERLOADED, True),
    ),
    **dict.fromkeys(("ReceiptHandleIsInvalid", "MessageNotInflight"), (Code.STALE, False)),
    **dict.fromkeys(("BatchRequestTooLong",), (Code.TOO_LARGE, False)),
    **dict.fromkeys(("QueueAlreadyExists", "QueueNameExists"), (Code.CONFLICT, False)),
    # The name is free again a minute later.
    **dict.fromkeys(("QueueDeletedRecently",), (Code.UNAVAILABLE, True)),
    **dict.fromkeys(("InternalError", "InternalFailure", "ServiceUnavailable"), (Code.UNAVAILABLE, True)),
}
_STALE_TEXT: Final = re.compile(
    r"has expired|not available for visibility|does not refer to|total VisibilityTimeout", re.I
)
_LARGE_TEXT: Final = re.compile(r"shorter than|too long|longer than|maximum message size", re.I)
_UNKNOWN_CALL: Final = frozenset({"InvalidAction", "UnknownOperation", "UnknownOperationException"})
_SPACE: Final = re.compile(r"\s+")

# The connection was not made: nothing can have happened.
_NEVER_LEFT: Final = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"})
_LOST: Final = frozenset(
    {"ConnectionClosedError", "HTTPClientError", "SSLError", "ResponseStreamingError", "IncompleteReadError"}
)
_NO_CREDENTIALS: Final = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "TokenRetrievalError",
        "SSOTokenLoadError",
    }
    | {"UnauthorizedSSOTokenError", "NoAuthTokenError"}
)
_SETTINGS: Final = frozenset(
    {
        "NoRegionError",
        "InvalidRegionError",
        "ProfileNotFound",
        "ConfigParseError",
        "UnknownServiceError",
        "ParamValidationError",
    }
)
_OURS: Final[tuple[tuple[type[AtLeastOnceError], Code, bool], ...]] = (
    (NotFound, Code.NOT_FOUND, False),
    (PermissionDenied, Code.PERMISSION, False),
    (ConfigurationError, Code.INVALID, False),
    (Closed, Code.CLOSED, False),
    (BrokerUnavailable, Code.UNAVAILABLE, True),
)


def classify(error: BaseException) -> Fault:
    """The fault behind ``error``; `Code.INTERNAL`, not retryable, for what is not known."""
    for cls, code, retryable in _OURS:
        if isinstance(error, cls):
            return Fault(code, retryable, Scope.CONNECTION, str(error))
    detail = _SPACE.sub(" ", mask(str(error)))[:500] or type(error).__name__
    response = getattr(error, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        return _answered(response, _told(response["Error"], getattr(error, "operation_name", "")) or detail)
    if not type(error).__module__.startswith("botocore."):
        return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {detail}")
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _NO_CREDENTIALS:
        remedy = "; give sqs://KEY:SECRET@REGION, profile=, or what boto3 looks for, such as AWS_PROFILE"
        return Fault(Code.PERMISSION, False, Scope.CONNECTION, detail + remedy)
    if "NoRegionError" in names:
        detail += "; give sqs://REGION, ?region= in the URL, or what boto3 looks for, such as AWS_REGION"
    if names & _SETTINGS:
        return Fault(Code.INVALID, False, Scope.CONNECTION, detail)
    if "ReadTimeoutError" in names:
        return Fault(Code.TIMEOUT, True, Scope.CONNECTION, detail)
    if names & (_NEVER_LEFT | _LOST):
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, detail)
    return Fault(Code.INTERNAL, False, Scope.MESSAGE, f"{type(error).__name__}: {detail}")


def _answered(response: dict[str, Any], detail: str) -> Fault:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    fault = of_code(str(response["Error"].get("Code", "")), str(response["Error"].get("Message", "")), detail)
    if fault.code is Code.INVALID and isinstance(status, int) and status >= 500:
        return Fault(Code.UNAVAILABLE, True, Scope.CONNECTION, detail)
    return fault


def _told(error: dict[str, Any], operation: str) -> str:
    """What the service said, and to which call; without the client's words around it."""
    text = _SPACE.sub(" ", mask(str(error.get("Message", "")))).strip()[:400]
    code = str(error.get("Code", "")).removeprefix(_PREFIX)
    return f"{operation or 'SQS'} answered {code}: {text}".removesuffix(": ") if code else ""


def of_code(code: str, text: str, detail: str = "") -> Fault:
    """The fault behind an error code of the service."""
    known = _CODES.get(code.removeprefix(_PREFIX))
    if code in _UNKNOWN_CALL:
        detail = f"{detail or code}: this endpoint does not know the call; topics need SNS and STS"
    detail = detail or f"{code}: {_SPACE.sub(' ', mask(text))[:400]}"
    if known is None:
        if _STALE_TEXT.search(text):
            return Fault(Code.STALE, False, Scope.MESSAGE, detail)
        return Fault(Code.TOO_LARGE if _LARGE_TEXT.search(text) else Code.INVALID, False, Scope.MESSAGE, detail)
    scope = Scope.CONNECTION if known[0] in (Code.PERMISSION, Code.UNAVAILABLE) else Scope.MESSAGE
    return Fault(known[0], known[1], scope, detail)


def never_left(error: BaseException) -> bool:
    """Whether ``error`` says that the call cannot have had an effect: no connection, or refused for its rate."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & (_NEVER_LEFT | _NO_CREDENTIALS)) or classify(error).code is Code.OVERLOADED


def outcome_of(fault: Fault) -> Outcome:
    """How an item ended: what is neither passing nor understood is not called certain."""
    certain = not fault.retryable and fault.code is not Code.INTERNAL
    return Outcome(Status.REJECTED if certain else Status.UNKNOWN, fault)


def as_error(error: BaseException, what: str) -> AtLeastOnceError:
    """What to raise for ``error`` where something as a whole failed."""
    if isinstance(error, AtLeastOnceError):
        return error
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"{what}: no answer in time")
    fault = classify(error)
    text = f"{what}: {fault.detail}"
    if fault.code is Code.NOT_FOUND:
        return NotFound(text)
    if fault.code is Code.PERMISSION:
        return PermissionDenied(text)
    if fault.code in (Code.INVALID, Code.CONFLICT, Code.TOO_LARGE):
        return ConfigurationError(text)
    return BrokerUnavailable(text)
