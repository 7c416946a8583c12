"""Leases in DynamoDB."""

from atleastonce.stores.dynamodb.store import DynamoDBStore

__all__ = ["DynamoDBStore"]
