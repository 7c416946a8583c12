"""What becomes of each item of a call, and the meaning of the service's error codes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from atleastonce.adapters.sqs.batches import in_tens, run
from atleastonce.adapters.sqs.faults import classify, of_code
from atleastonce.contract import Code, Status

botocore = pytest.importorskip("botocore.exceptions", reason="boto3 is not installed")


def entries(count: int) -> list[dict[str, Any]]:
    return in_tens([{"n": n} for n in range(count)])[0]


def client_error(code: str, message: str = "", status: int = 400) -> Exception:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = botocore.ClientError(response, "SendMessageBatch")
    return error


class Service:
    """Answers each call with the next of ``answers``: an error to raise, or the failures by place."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[list[int]] = []

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        self.calls.append([entry["n"] for entry in batch])
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            raise answer
        failed = [{"Id": str(place), **failure} for place, failure in answer.items()]
        return {
            "Successful": [{"Id": entry["Id"]} for entry in batch if int(entry["Id"]) not in answer],
            "Failed": failed,
        }


PASSING = {"Code": "InternalError", "SenderFault": False, "Message": "try again"}
BAD = {"Code": "InvalidMessageContents", "SenderFault": True, "Message": "characters"}


def test_only_what_failed_in_passing_is_sent_again() -> None:
    service = Service({1: PASSING, 2: BAD})
    outcomes = run(service, entries(4), until=time.monotonic() + 5)
    assert [outcome.status for outcome in outcomes] == [Status.OK, Status.OK, Status.REJECTED, Status.OK]
    assert service.calls == [[0, 1, 2, 3], [1]]


def test_what_keeps_failing_in_passing_is_unknown() -> None:
    service = Service(*[{0: PASSING}] * 50)
    (outcome,) = run(service, entries(1), until=time.monotonic() + 0.3)
    assert outcome.status is Status.UNKNOWN
    assert 1 < len(service.calls) < 10


def test_ordered_items_are_not_sent_again_behind_their_successors() -> None:
    service = Service({0: PASSING})
    outcomes = run(service, entries(2), until=time.monotonic() + 5, repeatable=True)
    assert [outcome.status for outcome in outcomes] == [Status.UNKNOWN, Status.OK]
    assert len(service.calls) == 1


def test_a_lost_answer_is_not_repeated_unless_repetition_does_no_harm() -> None:
    lost = botocore.ReadTimeoutError(endpoint_url="http://x")
    service = Service(lost)
    assert [o.status for o in run(service, entries(2), until=time.monotonic() + 5)] == [Status.UNKNOWN] * 2
    assert len(service.calls) == 1
    service = Service(lost)
    assert all(o.ok for o in run(service, entries(2), until=time.monotonic() + 5, repeatable=True))


@pytest.mark.parametrize(
    "error", [botocore.EndpointConnectionError(endpoint_url="http://x"), client_error("RequestThrottled")]
)
def test_what_never_left_is_tried_again(error: Exception) -> None:
    assert all(outcome.ok for outcome in run(Service(error, error), entries(3), until=time.monotonic() + 5))


def test_a_call_refused_for_one_items_sake_is_made_for_each_alone() -> None:
    service = Service(client_error("AWS.SimpleQueueService.BatchRequestTooLong"), {}, {0: BAD}, {})
    outcomes = run(service, entries(3), until=time.monotonic() + 5)
    assert [outcome.status for outcome in outcomes] == [Status.OK, Status.REJECTED, Status.OK]
    assert service.calls == [[0, 1, 2], [0], [1], [2]]


def test_an_item_that_the_answer_leaves_out_is_unknown() -> None:
    (outcome,) = run(lambda _: {"Successful": []}, entries(1))
    assert outcome.status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", "", Code.NOT_FOUND),
        ("QueueDoesNotExist", "", Code.NOT_FOUND),
        ("ReceiptHandleIsInvalid", "", Code.STALE),
        ("AWS.SimpleQueueService.MessageNotInflight", "", Code.STALE),
        ("InvalidParameterValue", "Reason: The receipt handle has expired.", Code.STALE),
        (
            "InvalidParameterValue",
            "Reason: Message does not exist or is not available for visibility timeout change.",
            Code.STALE,
        ),
        (
            "InvalidParameterValue",
            "Total VisibilityTimeout for the message is beyond the limit [43200 seconds]",
            Code.STALE,
        ),
        ("InvalidParameterValue", "Message must be shorter than 262144 bytes.", Code.TOO_LARGE),
        ("InvalidParameterValue", "something else", Code.INVALID),
        ("AccessDenied", "", Code.PERMISSION),
        ("InvalidClientTokenId", "", Code.PERMISSION),
        ("OverLimit", "", Code.OVERLOADED),
        ("ThrottlingException", "", Code.OVERLOADED),
        ("KmsAccessDenied", "", Code.PERMISSION),
    ],
)
def test_codes(code: str, text: str, expected: Code) -> None:
    assert of_code(code, text).code is expected
    assert classify(client_error(code, text)).code is expected


def test_errors_of_the_client() -> None:
    assert classify(botocore.NoCredentialsError()).code is Code.PERMISSION
    assert "AWS_PROFILE" in classify(botocore.NoCredentialsError()).detail
    assert classify(botocore.NoRegionError()).code is Code.INVALID
    assert "sqs://REGION" in classify(botocore.NoRegionError()).detail
    assert "?region=" in classify(botocore.NoRegionError()).detail
    assert classify(botocore.ConnectionClosedError(endpoint_url="http://x")).code is Code.UNAVAILABLE
    assert classify(client_error("Whatever", status=503)).retryable
    assert classify(ValueError("x")).code is Code.INTERNAL
