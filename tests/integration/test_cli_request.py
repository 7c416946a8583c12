"""`atleastonce request` against a responder, as a process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from atleastonce import Context, Queue, Service, connect, wire
from atleastonce.contract import ReplyTo
from atleastonce.patterns.replies import Answer, replies_of, reply_of


async def ask(url: str, *words: str, stdin: str = "") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "atleastonce", "request", "quotes", *words, "--broker", url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_answers_are_printed_in_their_order_and_errors_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    service = Service("shop", broker=url)

    @service.responder(Queue("quotes"))
    async def quote(request: dict[str, int]) -> dict[str, int] | bytes:
        await asyncio.sleep(0.01 if request["n"] % 2 else 0)
        if request["n"] < 0:
            raise ValueError("below zero")
        return b"\x00\xff" if request["n"] == 99 else {"price": request["n"] * 10}

    async with service:
        one, lines, failed = await asyncio.gather(
            ask(url, '{"n": 1}', "--timeout", "30s"),
            ask(url, "--json", "--timeout", "30s", stdin='{"n": 1}\n{"n": 2}\n{"n": -1}\nno JSON\n{"n": 99}\n'),
            ask(url, '{"n": -1}', "--timeout", "30s"),
        )
    assert (one[0], json.loads(one[1])) == (0, {"price": 10})
    assert lines[0] == 1
    found = [json.loads(line) for line in lines[1].splitlines()]
    assert [each["answers"] for each in found] == [[{"price": 10}], [{"price": 20}], [], ["AP8="]]
    assert found[2]["error"] == {"type": "ValueError", "message": "below zero", "retryable": True}
    assert "stdin:4" in lines[2]
    assert failed[0] == 1
    assert "ValueError: below zero" in failed[2]


async def test_nobody_to_ask_and_nothing_to_ask_with(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    async with connect(url) as broker:
        await broker.declare(Queue("others"))
    nobody, broken = await asyncio.gather(ask(url, '{"n": 1}'), ask(url, '{"n": '))
    assert nobody[0] == 1
    assert "NoResponder" in nobody[2]
    assert broken[0] == 2
    assert "looks like JSON" in broken[2]


async def test_an_answer_that_is_not_what_it_says_is_an_error(tmp_path: Path) -> None:
    """A responder that is no service of ours may say JSON and send none."""
    url = f"sqlite:///{tmp_path}/shop.db"
    service = Service("shop", broker=url)

    @service.consumer(Queue("quotes"))
    async def quote(request: dict[str, int], ctx: Context) -> None:
        address, correlation = ctx.headers.get(wire.REPLY_TO), ctx.headers.get(wire.CORRELATION)
        assert address is not None
        asked = correlation or address.rpartition(".")[2]
        answer = reply_of(Answer(b"no JSON", "application/json"), ReplyTo(address), asked, "other")
        await replies_of(service.broker.adapter).reply([answer])

    async with service:
        code, out, err = await ask(url, '{"n": 1}', "--json", "--timeout", "30s")
    assert code == 1, err
    assert json.loads(out)["error"]["type"] == "DecodeError"
    assert "Traceback" not in err
