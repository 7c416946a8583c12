"""boto3's clients: made once, when first needed, under a lock.

A client may be used by many threads; making one may not be done by two at a time, and takes a tenth of a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from atleastonce.adapters.sqs.config import Config
from atleastonce.adapters.sqs.direct import Direct
from atleastonce.adapters.sqs.quiet import mask_botocore
from atleastonce.silence import Silence

_lock = threading.Lock()
_sessions: dict[str | None, Any] = {}
"""By profile: what a session has read of the services' descriptions serves every client made from it."""

# A poll that has not been answered so long after its time is not going to be.
_SLACK = 10.0


class Clients:
    """The clients of one adapter. Every method may block, and runs on one of its threads.

    Attributes:
        silence: what was asked of them for messages, and is not answered.
    """

    def __init__(self, config: Config) -> None:
        self.silence = Silence()
        self._config = config
        self._made: dict[str, Any] = {}

    @property
    def sqs(self) -> Any:
        return self._made.get("sqs") or self._make("sqs")

    @property
    def sns(self) -> Any:
        return self._made.get("sns") or self._make("sns")

    @property
    def sts(self) -> Any:
        return self._made.get("sts") or self._make("sts")

    def call(self, operation: str, **asked: Any) -> dict[str, Any]:
        """One of the calls that every message takes part in. Raises the client's errors."""
        if "direct" not in self._made:
            self._make("sqs")
        direct: Direct = self._made["direct"]
        allowed = asked.get("WaitTimeSeconds", 0)  # a poll
        return self.heard(operation, lambda: direct(operation, **asked), allowed=allowed)

    def heard(self, operation: str, call: Callable[[], dict[str, Any]], *, allowed: float = 0.0) -> dict[str, Any]:
        """``call``, whose answer is owed meanwhile; in ``allowed`` seconds. Raises as it does."""
        from botocore.exceptions import ClientError

        silence = self.silence
        asked = silence.asked(f"an answer to {operation}", allowed=allowed)
        try:
            answer = call()
        except ClientError:
            silence.answered(asked)
            raise
        except BaseException:
            silence.missed(asked)
            raise
        silence.answered(asked)
        return answer

    def close(self) -> None:
        """Close all connections."""
        made, self._made = self._made, {}
        made.pop("direct", None)
        for client in made.values():
            client.close()

    def _make(self, service: str) -> Any:
        import boto3
        from botocore.config import Config as ClientConfig

        config = self._config
        with _lock:
            if service in self._made:
                return self._made[service]
            session = config.session or _sessions.get(config.profile)
            if session is None:
                session = _sessions[config.profile] = boto3.session.Session(profile_name=config.profile)
            settings: dict[str, Any] = {
                "connect_timeout": config.connect_timeout,
                "read_timeout": config.wait + _SLACK,
                # Never repeated by the client: a SendMessage whose answer was lost would be in the queue twice, and nobody
                # told. What may be repeated is known here, and is repeated here.
                "retries": {"total_max_attempts": 1, "mode": "standard"},
                "max_pool_connections": config.connections,
                "tcp_keepalive": True,
                # Checked before, by our own rules; the client's take a tenth of the time of a publish.
                "parameter_validation": False,
                "user_agent_extra": "atleastonce",
                **config.config,
            }
            endpoint = config.sns_endpoint if service == "sns" and config.sns_endpoint else config.endpoint
            client = session.client(
                service,
                region_name=config.region,
                endpoint_url=endpoint,
                aws_access_key_id=config.key,
                aws_secret_access_key=config.secret,
                aws_session_token=config.session_token,
                verify=config.cafile,
                config=ClientConfig(**settings),
            )
            mask_botocore()
            if service == "sqs":
                self._made["direct"] = Direct(client)
            self._made[service] = client
            return client
