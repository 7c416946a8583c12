"""For tests: the conformance suite for adapter authors, real brokers as pytest fixtures, histories and their checker."""
