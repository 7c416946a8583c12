"""``atleastonce dlq``: dead letters, looked at and brought back."""
