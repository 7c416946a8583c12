"""``atleastonce topology``: what a service needs on its broker, planned, made, or written for other tools."""
