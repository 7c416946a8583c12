"""The contenders: one module for each client that is measured. Each runs in a process of its own; see `measure.py`."""
