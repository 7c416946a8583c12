"""A Pub/Sub whose quota is used up: a proxy that hands every call on, and while it is full answers publishes as the service does,
with RESOURCE_EXHAUSTED. No emulator at hand has a quota."""

from __future__ import annotations

from typing import Any

import grpc

_PUBLISH = "/google.pubsub.v1.Publisher/Publish"
_WORDS = "Quota exceeded for quota metric 'Regional publisher throughput, kB' of service 'pubsub.googleapis.com'"


class Exhausted(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """Listens at ``address`` within ``async with``.

    Attributes:
        refused: how many publishes it has refused.
    """

    def __init__(self, upstream: str) -> None:
        self.refused = 0
        self._full = False
        self._upstream = upstream

    def fill(self) -> None:
        """Nothing may be published any more."""
        self._full = True

    def free(self) -> None:
        """Everything may."""
        self._full = False

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """See `grpc.GenericRpcHandler`: requests and answers stay as they are, bytes."""
        ask = self._channel.unary_unary(call.method)

        async def hand_on(request: bytes, context: Any) -> bytes:
            if self._full and call.method == _PUBLISH:
                self.refused += 1
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _WORDS)
            try:
                answer: bytes = await ask(request, timeout=context.time_remaining(), metadata=call.invocation_metadata)
                return answer
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
                raise  # it has raised

        return grpc.unary_unary_rpc_method_handler(hand_on)

    async def __aenter__(self) -> Exhausted:
        self._channel = grpc.aio.insecure_channel(self._upstream)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0.5)
        await self._channel.close()
