"""Messaging patterns, each written once, over real brokers."""
