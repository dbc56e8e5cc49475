"""The client against real engine processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.client import EngineClient, EngineDead, EngineRefused, Generation
from engine.config import EngineConfig
from engine.messages import Output, Span, Submit, TurnEnded
from engine.wire import frame
from scheduler.request import Sampling

PROMPT = list(range(7, 107))
SHORT = Sampling(max_tokens=5, temperature=0.0, ignore_eos=True)
ENDLESS = Sampling(max_tokens=100_000, temperature=0.0, ignore_eos=True)
PATIENCE_S = 120

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def config(checkpoint: Path, **settings: Any) -> EngineConfig:
    limits: dict[str, Any] = {"kv_cache_bytes": 1 << 25, "threads": 1, "device": "cpu"}
    return EngineConfig(model=str(checkpoint), **limits | settings)


def alone(scenario: Coroutine[Any, Any, None]) -> None:
    """Runs a scenario in a loop of its own; a hang is a failure."""
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_S))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs coroutines in one event loop that lives as long as the module's engine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(coroutine, PATIENCE_S), loop
        ).result()

    yield run
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def client(checkpoint: Path, run: Run) -> Iterator[EngineClient]:
    """A client whose engine the tests below share."""
    client: EngineClient = run(EngineClient.start(config(checkpoint, max_queued_requests=4)))
    yield client
    run(client.close())


async def read(generation: Generation) -> dict[int, list[Output]]:
    outputs: dict[int, list[Output]] = {}
    async for news in generation:
        for output in news:
            outputs.setdefault(output.choice, []).append(output)
    return outputs


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def until_idle(client: EngineClient) -> None:
    """Waits for a snapshot without work."""
    while (s := client.snapshot) is None or s.running or s.waiting or s.live_pages:
        await asyncio.sleep(0.02)
    assert sum(s.idle_pages.values()) + s.free_pages == s.total_pages


# ---------------------------------------------------------------- a living engine


def test_a_request_is_accepted_and_streams_to_its_terminal_event(
    client: EngineClient, run: Run
) -> None:
    async def scenario() -> None:
        async with await client.submit(Submit("one", PROMPT, SHORT, n=2)) as generation:
            outputs = await read(generation)
            assert generation.finished
        assert outputs.keys() == {0, 1}
        for news in outputs.values():
            assert [o.finish for o in news if o.finish] == ["length"]
            assert news[-1].finish == "length"
            assert len(tokens(news)) == 5
        assert tokens(outputs[0]) == tokens(outputs[1]), "greedy"
        async with await client.submit(Submit("again", PROMPT, SHORT)) as generation:
            assert generation.cached_tokens == 64
            assert tokens((await read(generation))[0]) == tokens(outputs[0])

    run(scenario())


def test_a_refusal_carries_status_and_field(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        window = client.ready.max_model_len
        with pytest.raises(EngineRefused) as refused:
            await client.submit(Submit("long", [5] * window, SHORT))
        assert (refused.value.status, refused.value.param) == (400, "messages")
        assert refused.value.code == "context_length_exceeded"
        assert str(window - 1) in refused.value.message

    run(scenario())


def test_news_that_nobody_reads_is_merged(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        how = Sampling(max_tokens=40, temperature=0.0, logprobs=1, ignore_eos=True)
        expected = await read(await client.submit(Submit("reader", PROMPT, how)))
        unread = await client.submit(Submit("unread", PROMPT, how))
        later = await client.submit(Submit("later", PROMPT, how))
        await read(later)  # started after it and as long: the unread one has ended
        news = [news async for news in unread]
        assert len(news) == 1, "all of it at once"
        ((output,),) = news
        assert output.finish == "length"
        assert output.token_ids == tokens(expected[0])
        assert output.logprobs is not None and len(output.logprobs) == 40

    run(scenario())


def test_leaving_early_aborts_and_gives_every_page_back(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        async with await client.submit(Submit("left", PROMPT, ENDLESS, n=3)) as generation:
            async for _ in generation:
                break
            assert not generation.finished
        await until_idle(client)

    run(scenario())


def test_a_cancelled_reader_aborts_too(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        started = asyncio.Event()

        async def reader() -> None:
            async with await client.submit(Submit("cancelled", PROMPT, ENDLESS)) as generation:
                async for _ in generation:
                    started.set()

        task = asyncio.create_task(reader())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(client)

    run(scenario())


def test_stop_ends_one_choice(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        async with await client.submit(Submit("stopped", PROMPT, ENDLESS, n=2)) as generation:
            finished = {}
            async for news in generation:
                for output in news:
                    if output.finish:
                        finished[output.choice] = output.finish
                if not finished:
                    client.stop("stopped", 1, 1)
                elif finished.keys() == {1}:
                    client.abort("stopped")
            assert finished == {0: "abort", 1: "stop"}

    run(scenario())


def test_an_id_in_use_is_refused_without_harming_its_owner(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        async with await client.submit(Submit("mine", PROMPT, SHORT)) as generation:
            with pytest.raises(ValueError, match="'mine' is in use"):
                await client.submit(Submit("mine", PROMPT, SHORT))
            assert len(tokens((await read(generation))[0])) == 5

    run(scenario())


def test_what_cannot_be_sent_leaves_nothing_behind(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        for _ in range(2):  # the second attempt does not find the first one's id in use
            with pytest.raises(OverflowError):
                await client.submit(Submit("big", PROMPT, Sampling(max_tokens=1, seed=2**70)))

    run(scenario())


def test_messages_about_strangers_are_ignored(client: EngineClient, run: Run) -> None:
    async def scenario() -> None:
        client.abort("nobody")
        client.stop("nobody", 0, 3)
        client.turn_ended(TurnEnded("nobody", 0, "answer", [Span(0, 9, "reasoning")], [1, 2]))
        outputs = await read(await client.submit(Submit("still here", PROMPT, SHORT)))
        assert len(tokens(outputs[0])) == 5

    run(scenario())


def test_a_hundred_requests_at_once_are_each_answered_or_refused(
    client: EngineClient, run: Run
) -> None:
    async def one(number: int) -> str:
        try:
            submit = Submit(f"many {number}", PROMPT[: 10 + number % 50], SHORT)
            async with await client.submit(submit) as generation:
                outputs = await read(generation)
            assert len(tokens(outputs[0])) == 5
            return "answered"
        except EngineRefused as refused:
            assert refused.status == 429
            assert refused.retry_after is not None and refused.retry_after > 0
            return "refused"

    async def scenario() -> None:
        fates = await asyncio.gather(*(one(number) for number in range(100)))
        assert fates.count("answered") >= 4
        await until_idle(client)

    run(scenario())


# ---------------------------------------------------------------- death


def test_a_killed_engine_is_noticed_by_running_waiting_and_later_requests(
    checkpoint: Path,
) -> None:
    async def scenario() -> None:
        client = await EngineClient.start(config(checkpoint, max_num_seqs=1))
        running = await client.submit(Submit("running", PROMPT, ENDLESS))
        waiting = await client.submit(Submit("waiting", PROMPT, ENDLESS))
        os.kill(client.process.pid, signal.SIGKILL)
        for generation in (running, waiting):
            with pytest.raises(EngineDead, match="status -9"):
                await read(generation)
        assert not client.alive
        with pytest.raises(EngineDead, match="status -9"):
            await client.submit(Submit("later", PROMPT, SHORT))
        client.abort("running")  # must not raise
        await client.close()

    alone(scenario())


def test_a_stuck_engine_is_reported_dead(checkpoint: Path) -> None:
    async def scenario() -> None:
        client = await EngineClient.start(config(checkpoint, silence_limit_s=1.0))
        running = await client.submit(Submit("running", PROMPT, ENDLESS))
        os.kill(client.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineDead, match="silent for 1 seconds"):
            await read(running)
        with pytest.raises(EngineDead, match="silent"):
            await client.submit(Submit("later", PROMPT, SHORT))
        assert await client.process.wait() == -signal.SIGKILL
        await client.close()

    alone(scenario())


def test_an_error_in_a_step_is_the_reason_every_request_hears(checkpoint: Path) -> None:
    async def scenario() -> None:
        client = await EngineClient.start(config(checkpoint))
        running = await client.submit(Submit("running", PROMPT, ENDLESS))
        broken = await client.submit(Submit("broken", [10**6], SHORT))
        for generation in (running, broken):
            with pytest.raises(EngineDead, match="IndexError"):
                await read(generation)
        assert await client.process.wait() == 1
        await client.close()

    alone(scenario())


def test_closing_ends_the_process_and_open_generations(checkpoint: Path) -> None:
    async def scenario() -> None:
        client = await EngineClient.start(config(checkpoint))
        generation = await client.submit(Submit("open", PROMPT, ENDLESS))
        await client.close()
        assert client.process.returncode == 0
        with pytest.raises(EngineDead, match="shut down"):
            await read(generation)
        with pytest.raises(EngineDead, match="shut down"):
            await client.submit(Submit("late", PROMPT, SHORT))

    alone(scenario())


def test_others_connect_to_an_engine_that_somebody_has_started(
    checkpoint: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        path = tmp_path / "engine"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            early = asyncio.create_task(EngineClient.connect(path, PATIENCE_S))
            owner = await EngineClient.start(config(checkpoint), listener)
            first, second = await early, await EngineClient.connect(path, PATIENCE_S)
            assert first.ready == second.ready == owner.ready
            leaves = await first.submit(Submit("same", PROMPT, ENDLESS))
            stays = await second.submit(Submit("other", PROMPT, ENDLESS))
            with pytest.raises(EngineRefused, match="running for another"):
                await second.submit(Submit("same", PROMPT, SHORT))
            await first.close()
            with pytest.raises(EngineDead, match="shut down"):
                await read(leaves)
            # Its own two submits, one of them refused; the first one's are not counted.
            while (s := second.snapshot) is None or (s.submits, s.running) != (2, 1):
                await asyncio.sleep(0.02)
            async with stays:
                assert await anext(aiter(stays))
            await until_idle(second)
            await until_idle(owner)
            running = await second.submit(Submit("last", PROMPT, ENDLESS))
            await owner.close()
            with pytest.raises(EngineDead, match="closed the connection"):
                await read(running)
            assert await second.dead() == second.death
            await second.close()

    alone(scenario())


def test_an_engine_that_cannot_start_is_told_to_who_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "engine"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            waiting = asyncio.create_task(EngineClient.connect(path, PATIENCE_S))
            with pytest.raises(EngineDead, match=r"config\.json"):
                await EngineClient.start(config(tmp_path), listener)
            assert not waiting.done(), "another engine may listen there"
        with pytest.raises(EngineDead, match="closed the connection"):
            await waiting

    alone(scenario())


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(EngineDead, match=r"config\.json"):
            await EngineClient.start(config(tmp_path))

    alone(scenario())


@pytest.mark.parametrize(
    "garbage", [frame(b"\xc1not msgpack"), frame(b"\x81\xa4type\xa5Alien"), b"\xff\xff\xff\xff"]
)
def test_garbage_from_the_engine_is_its_death_not_a_hang(garbage: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        process = await asyncio.create_subprocess_exec("sleep", str(PATIENCE_S))
        client = EngineClient(process, reader, writer)
        client._listener = asyncio.create_task(client._listen())
        submitted = asyncio.create_task(client.submit(Submit("a", PROMPT, SHORT)))
        theirs.sendall(garbage)
        with pytest.raises(EngineDead, match="broken message"):
            await submitted
        assert await process.wait() == -signal.SIGKILL
        theirs.close()
        await client.close()

    alone(scenario())


PARENT = """
import asyncio, sys
from engine.client import EngineClient
from engine.config import EngineConfig

async def main():
    client = await EngineClient.start(EngineConfig(model=sys.argv[1], kv_cache_bytes=1 << 25))
    print(client.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_engine_ends_when_its_parent_is_killed(checkpoint: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(checkpoint)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        parent.kill()
        # The engine holds the same pipe: its end comes when the last of both is gone.
        rest, _ = parent.communicate(timeout=PATIENCE_S)
        assert rest == ""


def test_importing_the_client_does_not_import_torch() -> None:
    code = "import sys, engine.client, engine.messages; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_that_reads_nothing_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More is unsent than the socket takes, as when the engine hangs."""
    monkeypatch.setattr("engine.client.UNREAD_GRACE_S", 0.01)

    async def closes() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            client = EngineClient(None, reader, writer)
            for number in range(8):
                client._send(Submit(str(number), [1] * 500_000, Sampling(max_tokens=1)))
            assert writer.transport.get_write_buffer_size() > 0
            await asyncio.wait_for(client.close(), timeout=60)

    asyncio.run(closes())
