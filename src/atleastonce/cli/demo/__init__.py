"""The tour: an order pipeline in which things go wrong, and an account of every message at its end.

`services` is the part to read as an example: two consumers as anyone would write them. `tour` is the story, `worker`
one consumer process, `crew` starts and kills those, `account` says what became of every message.
"""
