"""Plugins of our own test run: real brokers as fixtures, and the conformance report."""

from hypothesis import HealthCheck, settings

# Many tests share a machine: how long one example takes says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

pytest_plugins = ["pytester", "atleastonce.testing.brokers", "atleastonce.testing.conformance.plugin"]
