"""The runtime, written once above every adapter.

Pure parts hold the rules and know no IO, no clock and no thread: `window`, `lanes`, `leases`, `schedule`, `backoff`. The moving
parts drive them: `pools` run handlers, `settler` and `mover` end deliveries in batches, `worker` reads one source, and
`supervisor` keeps a worker alive through lost connections.

The life of one delivery::

    receive -> window -> (held until due) -> lane -> handler -> decision -> copies confirmed -> settled -> window

Everything between two arrows is a list. No task, future or executor job is created for a message.
"""
