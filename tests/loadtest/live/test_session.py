"""Sessions played against a scripted server, with threads for users."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from loadtest.conversations import Conversation, ToolStep, Turn
from loadtest.live.scripts import Ask, Manner, Script, converse
from loadtest.live.service import find_service
from loadtest.live.session import LONGEST_RETRY_S, RETRY_S, Run
from loadtest.live.text import Texts
from tests.loadtest.live.chat_server import Refusal, chat_server, obedient

TALK = Conversation(
    (Turn(0.0, 20, (ToolStep(0, 10, 0.0, 10),), 0, 20), Turn(0.0, 20, (), 0, 20)),
)


def talk() -> Script:
    return converse(TALK, 10, Texts(2.0), Manner(), "k")


def refuse_after(count: int, **headers: str) -> Any:
    left = [count + 2]  # two probes come first

    def reply(body: Any) -> list[Any]:
        left[0] -= 1
        if left[0] < 0:
            raise Refusal(429, b'{"error": {"code": "queue_full"}}', headers)
        return obedient(body)

    return reply


def test_a_conversation_is_played_to_its_end() -> None:
    ended = []
    with chat_server() as server:
        run = Run(find_service(server.url), on_sample=ended.append)
        client = run.client()
        assert run.play("agent", talk(), client) == 0.0
        client.connection.close()
        # One connection for all of it; the probes had their own.
        assert server.connections == 5
    assert [one.outcome for one in run.samples] == ["answered"] * 3 and ended == run.samples
    assert [one.asked_call for one in run.samples] == [True, False, False]
    assert [one.called for one in run.samples] == [True, False, False]
    times = [at for one in run.samples for at in (one.due_s, one.sent_s, one.first_s, one.end_s)]
    assert times == sorted(times) and run.in_flight == 0


def test_a_refused_session_ends_and_says_how_long_to_wait() -> None:
    with chat_server(refuse_after(1, **{"retry-after": "5"})) as server:
        run = Run(find_service(server.url))
        client = run.client()
        assert run.play("agent", talk(), client) == 5.0
        assert [one.outcome for one in run.samples] == ["answered", "refused"]
        server.reply = refuse_after(-2, **{"retry-after": "500"})
        assert run.play("agent", talk(), client) == LONGEST_RETRY_S
        server.reply = refuse_after(-2)
        assert run.play("agent", talk(), client) == RETRY_S
        client.connection.close()


def test_an_open_loop_s_first_request_has_its_due_time() -> None:
    with chat_server() as server:
        run = Run(find_service(server.url))
        client = run.client()
        run.play("agent", talk(), client, due_s=-2.5)
        client.connection.close()
    first, *others = run.samples
    assert first.due_s == -2.5 and first.lag_s > 2.5
    assert all(one.due_s >= 0 for one in others)


def test_what_fails_beside_the_server_is_kept_and_stops_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken() -> Script:
        yield Ask({"messages": [], "max_tokens": 1}, pause_s=0.0)
        raise TypeError("a bug of ours")

    with chat_server() as server:
        run = Run(find_service(server.url))
        client = run.client()
        for _ in range(2):
            with run.watched():
                run.play("chat", broken(), client, due_s=0.0)
        client.connection.close()
    assert run.failures == ["TypeError: a bug of ours"] * 2
    assert run.ending and run.cut_short and len(run.samples) == 2
    assert capsys.readouterr().err.count("Traceback") == 1


def test_stopping_wakes_who_thinks_and_sends_nothing_more() -> None:
    closed = []

    def slow() -> Script:
        try:
            yield Ask({"messages": [], "max_tokens": 1}, pause_s=3600.0)
        except GeneratorExit:
            closed.append(True)
            raise

    with chat_server() as server:
        run = Run(find_service(server.url))
        client = run.client()
        user = threading.Thread(target=run.play, args=("chat", slow(), client))
        user.start()
        run.stop(cut_short=True)
        user.join(timeout=10)
        assert not user.is_alive() and closed and run.samples == []
        assert run.ending and run.cut_short and run.stopped_s >= 0 and not run.wait(0)
        stopped_s = run.stopped_s
        run.stop()
        assert run.stopped_s == stopped_s and run.cut_short, "it stops once"
