"""Plugins of our own test run: real brokers as fixtures, and the conformance report."""

pytest_plugins = ["pytester", "atleastonce.testing.brokers", "atleastonce.testing.conformance.plugin"]
