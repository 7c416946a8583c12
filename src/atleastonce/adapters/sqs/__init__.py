"""Amazon SQS, with SNS for topics."""

from __future__ import annotations

from atleastonce.adapters.sqs.adapter import SQSAdapter

__all__ = ["SQSAdapter"]
