from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from engine.core import EngineCore
from engine.grammar import CompiledGrammar, GrammarCompiler
from engine.intake import Intake, ReadySubmit
from engine.messages import (
    Abort,
    Accepted,
    FromEngine,
    Grammar,
    Output,
    Outputs,
    Refused,
    Sampling,
    Shutdown,
    Stop,
    Submit,
    ToEngine,
)
from tests.checkpoints import SPECIAL_TOKENS, write_tokenizer
from tests.engine.replica import TinyReplica, prompt_of

SAMPLING = Sampling(max_tokens=8, seed=1)
A = ord("a") - ord("!") + len(SPECIAL_TOKENS)
"""The token of the letter a."""
WORD = Grammar('start: "ab" | "abc"', param="the.field")


class SlowCompiler(GrammarCompiler):
    """Compiles when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 320, (1,))
        self.begun, self.go = threading.Event(), threading.Event()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        self.begun.set()
        assert self.go.wait(60)
        return super().compile(grammar)


@pytest.fixture
def compiler(tmp_path: Path) -> GrammarCompiler:
    write_tokenizer(tmp_path)
    return GrammarCompiler(tmp_path, 320, (1,))


@pytest.fixture
def slow(tmp_path: Path) -> SlowCompiler:
    write_tokenizer(tmp_path)
    return SlowCompiler(tmp_path)


class Loop:
    """A step loop behind an intake; it ends when every choice it was told of has."""

    def __init__(self, compiler: GrammarCompiler | None, **limits: int) -> None:
        self.replica = TinyReplica(**limits)
        self.inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self.intake = Intake(self.replica.scheduler, self.inbox, compiler)
        self.core = EngineCore(self.replica.scheduler, self.replica.runner, self.inbox, self.send)
        self.sent: list[FromEngine] = []
        self.open: set[tuple[str, int]] = set()

    def take(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self.open |= {(message.id, choice) for choice in range(message.n)}
        self.intake.take(message)

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)
        if isinstance(message, Refused):
            self.open = {name for name in self.open if name[0] != message.id}
        elif isinstance(message, Outputs):
            self.open -= {(o.id, o.choice) for o in message.outputs if o.finish is not None}
        if not self.open and isinstance(message, Refused | Outputs):
            self.inbox.put(Shutdown())

    def outputs(self, request_id: str) -> list[Output]:
        messages = [message for message in self.sent if isinstance(message, Outputs)]
        return [o for message in messages for o in message.outputs if o.id == request_id]

    def tokens(self, request_id: str) -> list[int]:
        return [token for output in self.outputs(request_id) for token in output.token_ids]


def test_an_answer_follows_its_grammar_beside_one_without(compiler: GrammarCompiler) -> None:
    loop = Loop(compiler)
    loop.take(Submit("bound", prompt_of(20), SAMPLING, n=2, grammar=WORD))
    loop.take(Submit("free", prompt_of(20), SAMPLING))
    loop.core.run()
    for choice in (0, 1):
        tokens = [t for o in loop.outputs("bound") if o.choice == choice for t in o.token_ids]
        assert tokens in ([A, A + 1, 1], [A, A + 1, A + 2, 1])
    assert len(loop.tokens("free")) == 8
    assert len(loop.replica.runner.grammars) == 0


def test_a_grammar_that_cannot_be_compiled_refuses_its_request(compiler: GrammarCompiler) -> None:
    loop = Loop(compiler)
    loop.take(Submit("bad", prompt_of(9), SAMPLING, grammar=Grammar("start: x", param="the.field")))
    loop.core.run()
    (refused,) = [message for message in loop.sent if isinstance(message, Refused)]
    assert (refused.id, refused.status, refused.code) == ("bad", 400, "invalid_grammar")
    assert refused.param == "the.field" and "x" in refused.message
    assert loop.core.submits == 1
    assert len(loop.replica.runner.grammars) == 0


def test_an_engine_without_compiler_refuses_grammars() -> None:
    loop = Loop(None)
    loop.take(Submit("a", prompt_of(9), SAMPLING, grammar=WORD))
    loop.core.run()
    assert [message.code for message in loop.sent if isinstance(message, Refused)] == [
        "invalid_grammar"
    ]


def test_other_requests_do_not_wait_for_a_grammar(slow: SlowCompiler) -> None:
    loop = Loop(slow)
    loop.take(Submit("slow", prompt_of(9), SAMPLING, grammar=WORD))
    assert slow.begun.wait(60)
    loop.take(Submit("quick", prompt_of(9), SAMPLING))
    first = loop.inbox.get(timeout=60)
    assert isinstance(first, ReadySubmit) and first.id == "quick"
    slow.go.set()
    second = loop.inbox.get(timeout=60)
    assert isinstance(second, ReadySubmit) and second.compiled is not None


def test_an_abort_during_compilation_comes_behind_its_request(slow: SlowCompiler) -> None:
    loop = Loop(slow)
    loop.take(Submit("a", prompt_of(9), SAMPLING, n=2, grammar=WORD))
    assert slow.begun.wait(60)
    loop.take(Stop("a", 1, 0))
    loop.take(Abort("a"))
    assert loop.inbox.empty()
    slow.go.set()
    loop.core.run()
    assert isinstance(loop.sent[0], Accepted) or isinstance(loop.sent[1], Accepted)
    # A step may run between the request and what came behind it.
    ends = [(o.choice, o.finish) for o in loop.outputs("a") if o.finish is not None]
    assert sorted(ends) == [(0, "abort"), (1, "stop")]
    assert len(loop.replica.runner.grammars) == 0
    assert loop.core.snapshot().live_pages == 0


def test_a_choice_whose_grammar_and_tokens_leave_nothing_ends_with_an_error(
    compiler: GrammarCompiler,
) -> None:
    loop = Loop(compiler)
    for temperature, name in ((0.0, "greedy"), (1.0, "drawn")):
        how = Sampling(max_tokens=8, temperature=temperature, allowed_token_ids=(300,), logprobs=1)
        loop.take(Submit(name, prompt_of(9), how, grammar=WORD))
    late = Grammar('start: "a" <[3]>')
    how = Sampling(max_tokens=8, allowed_token_ids=(A,))
    loop.take(Submit("late", prompt_of(9), how, grammar=late))
    loop.take(Submit("fine", prompt_of(9), SAMPLING))
    loop.core.run()
    for name, tokens in (("greedy", []), ("drawn", []), ("late", [A])):
        assert [o.finish for o in loop.outputs(name) if o.finish] == ["error"]
        assert loop.tokens(name) == tokens
    assert len(loop.tokens("fine")) == 8
    last = loop.core.snapshot()
    assert (last.live_pages, last.running) == (0, 0)


def test_grammars_survive_preemption(compiler: GrammarCompiler) -> None:
    loop = Loop(compiler, total_pages=6)
    long = Grammar("start: /[0-9]{90}/")
    for seed in range(3):
        how = Sampling(max_tokens=200, seed=seed)
        loop.take(Submit(f"r{seed}", prompt_of(60, seed), how, grammar=long))
    loop.core.run()
    assert loop.replica.scheduler.preemptions > 0
    for seed in range(3):
        *digits, end = loop.tokens(f"r{seed}")
        assert len(digits) == 90 and len(set(digits)) <= 10 and end == 1


def test_closing_ends_the_loop(compiler: GrammarCompiler) -> None:
    loop = Loop(compiler)
    loop.intake.close()
    loop.core.run()
    assert not [message for message in loop.sent if isinstance(message, Outputs)]


def test_a_grammar_whose_request_was_aborted_is_not_compiled(slow: SlowCompiler) -> None:
    loop = Loop(slow)
    loop.take(Submit("first", prompt_of(9), SAMPLING, grammar=WORD))
    assert slow.begun.wait(60)
    slow.begun.clear()
    loop.take(Submit("gone", prompt_of(9), SAMPLING, grammar=WORD))
    loop.take(Abort("gone"))
    slow.go.set()
    loop.core.run()
    assert not slow.begun.is_set()
    ends = [message.id for message in loop.sent if isinstance(message, Refused)]
    assert ends == ["gone"]
