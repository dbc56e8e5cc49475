from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine import token_masks
from engine.grammar import (
    CompiledGrammar,
    GrammarCompiler,
    GrammarError,
    Matcher,
    RunningGrammars,
    reason_of,
)
from engine.messages import Grammar
from engine.token_masks import AllowedTokens, TokenMasks, unpack
from tests.checkpoints import SPECIAL_TOKENS, write_tokenizer

VOCAB = 320
EOS, THINK_END, DSML = 1, 5, 6
TEXT = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 256)
"""Tokens that are bytes of text; those behind them stand for nothing."""

Allowed = Callable[[Matcher], set[int]]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return GrammarCompiler(folder, VOCAB, (EOS,))


@pytest.fixture(scope="module")
def text_ids(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture
def masks() -> TokenMasks:
    return TokenMasks(VOCAB, torch.device("cpu"))


@pytest.fixture
def allowed(masks: TokenMasks) -> Allowed:
    def allowed(matcher: Matcher) -> set[int]:
        pending = masks.begin([matcher])
        if pending is None:
            return set(range(VOCAB))
        found = pending.result()
        assert found.rows == [0]
        return set(found.tokens[0].nonzero().flatten().tolist())

    return allowed


def test_only_what_the_grammar_allows_may_come(
    compiler: GrammarCompiler, allowed: Allowed, text_ids: Callable[[str], list[int]]
) -> None:
    matcher = compiler.compile(Grammar("start: /[ab]c/")).matcher()
    assert allowed(matcher) == set(text_ids("ab"))
    matcher.advance(text_ids("a")[0])
    assert allowed(matcher) == set(text_ids("c"))
    matcher.advance(text_ids("c")[0])
    assert allowed(matcher) == {EOS}, "nothing is left to say"
    for _ in range(3):
        matcher.advance(EOS)
        assert allowed(matcher) == {EOS} and matcher.error is None


def test_a_control_token_is_no_text_and_text_is_no_control_token(
    compiler: GrammarCompiler, allowed: Allowed
) -> None:
    text = compiler.compile(Grammar("start: /(?s:.)+/")).matcher()
    assert allowed(text) <= set(TEXT) and len(allowed(text)) > 150
    marker = compiler.compile(Grammar(f'start: <[{DSML}]> "x"')).matcher()
    assert allowed(marker) == {DSML}


def test_a_required_grammar_waits_for_its_token(
    compiler: GrammarCompiler, allowed: Allowed, text_ids: Callable[[str], list[int]]
) -> None:
    grammar = Grammar('start: "yes"', after_token=THINK_END)
    matcher = compiler.compile(grammar).matcher()
    assert allowed(matcher) == {*TEXT, THINK_END}, "the end may not come, nor a call"
    for token in text_ids("no"):
        matcher.advance(token)
        assert not matcher.started
    matcher.advance(THINK_END)
    assert allowed(matcher) == set(text_ids("y"))
    # The first such token starts it; a second is a token like any other.
    matcher.advance(THINK_END)
    assert matcher.error is not None


def test_an_optional_grammar_leaves_alone_what_comes_before_it(
    compiler: GrammarCompiler, masks: TokenMasks, allowed: Allowed
) -> None:
    grammar = Grammar('start: "x"', after_token=DSML, required=False)
    matcher = compiler.compile(grammar).matcher([EOS, THINK_END, 300])
    assert masks.begin([matcher]) is None
    matcher.advance(DSML)
    assert len(allowed(matcher)) == 1


def test_a_matcher_is_rebuilt_from_its_tokens(
    compiler: GrammarCompiler, allowed: Allowed, text_ids: Callable[[str], list[int]]
) -> None:
    compiled = compiler.compile(Grammar('start: "a" /[0-9]+/ "z"', after_token=THINK_END))
    tokens = [*text_ids("hm"), THINK_END, *text_ids("a12z")]
    running = compiled.matcher()
    for i, token in enumerate(tokens):
        again = compiled.matcher(tokens[:i])
        assert allowed(again) == allowed(running)
        running.advance(token)
    assert allowed(running) == {EOS}


def test_choices_do_not_share_their_place(compiler: GrammarCompiler, allowed: Allowed) -> None:
    compiled = compiler.compile(Grammar("start: /[ab]{3}/"))
    first, second = compiled.matcher(), compiled.matcher()
    before = allowed(second)
    first.advance(min(before))
    first.advance(EOS)
    assert first.error is not None
    assert second.error is None and allowed(second) == before


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("start: missing"),
        Grammar("start: /(/"),
        Grammar("start: <[99999]>"),
        Grammar('{"grammars": [{"json_schema": {"type": "no such"}}]}'),
        Grammar("start: /a/", after_token=VOCAB),
        Grammar("start: " + "a " * 20_000 + "\na: /x/ | "),
    ],
)
def test_what_cannot_be_followed_is_refused(compiler: GrammarCompiler, grammar: Grammar) -> None:
    with pytest.raises(GrammarError) as caught:
        compiler.compile(grammar)
    assert 0 < len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_checkpoint_without_tokenizer_follows_no_grammar(tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match=r"tokenizer\.json"):
        GrammarCompiler(tmp_path, VOCAB, (EOS,)).compile(Grammar("start: /a/"))


def test_a_known_source_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.grammar.CACHED_SOURCE_BYTES", 2000)
    write_tokenizer(tmp_path)
    compiler = GrammarCompiler(tmp_path, VOCAB, (EOS,))
    first = compiler.compile(Grammar("start: /a/"))
    assert compiler.compile(Grammar("start: /a/", after_token=5)).template is first.template
    for i in range(6):
        compiler.compile(Grammar(f'start: "{i:05d}{"x" * 500}"'))
        assert compiler._cached_bytes <= 2000
    assert compiler.compile(Grammar("start: /a/")).template is not first.template


def test_rows_without_grammar_have_no_mask(compiler: GrammarCompiler, masks: TokenMasks) -> None:
    compiled = compiler.compile(Grammar('start: "a" | "b"'))
    matchers = [None, compiled.matcher(), None, compiled.matcher([TEXT[0]])]
    pending = masks.begin(matchers)
    assert isinstance(pending, Future)
    found = pending.result()
    assert found.rows == [1, 3] and found.tokens.shape == (2, VOCAB)
    assert masks.begin([None, None]) is None


def test_a_broken_grammar_ends_its_own_row_only(
    compiler: GrammarCompiler, masks: TokenMasks, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = compiler.compile(Grammar('start: "a" | "b"'))
    broken, fine = compiled.matcher([THINK_END]), compiled.matcher()
    assert broken.error is not None
    pending = masks.begin([broken, fine])
    assert pending is not None
    with caplog.at_level(logging.ERROR):
        tokens = pending.result().tokens
    assert tokens.sum(-1).tolist() == [0, 2]
    assert "ended its choice" in caplog.text


def test_a_library_that_raises_ends_only_the_rows_it_raises_for(
    compiler: GrammarCompiler, masks: TokenMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compiler.compile(Grammar('start: "a" | "b"'))
    bad, fine = compiled.matcher(), compiled.matcher()

    def all_at_once(*_: object) -> None:
        raise RuntimeError("one of them")

    def one(parser: LLMatcher, bits: NDArray[np.int32], place: int) -> None:
        if parser is bad.parser:
            raise RuntimeError("this one")
        fill_next_token_bitmask(parser, bits, place)

    monkeypatch.setattr(token_masks, "fill_next_token_bitmask_par", all_at_once)
    monkeypatch.setattr(token_masks, "fill_next_token_bitmask", one)
    pending = masks.begin([fine, bad])
    assert pending is not None
    assert pending.result().tokens.sum(-1).tolist() == [2, 0]
    assert (fine.error, bad.error) == (None, "RuntimeError: this one")


class PanicException(BaseException):
    """Stands for what llguidance raises when Rust panics."""


def test_a_panic_is_an_error_of_its_grammar_and_an_interrupt_is_not(
    compiler: GrammarCompiler, masks: TokenMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: object) -> None:
        raise PanicException("index out of bounds")

    matcher = compiler.compile(Grammar('start: "a" | "b"')).matcher()
    monkeypatch.setattr(token_masks, "fill_next_token_bitmask_par", panic)
    monkeypatch.setattr(token_masks, "fill_next_token_bitmask", panic)
    pending = masks.begin([matcher])
    assert pending is not None
    assert pending.result().tokens.sum() == 0
    assert matcher.error == "PanicException: index out of bounds"
    with pytest.raises(KeyboardInterrupt):
        reason_of(KeyboardInterrupt())


def test_a_panic_of_the_library_itself_refuses_the_grammar(compiler: GrammarCompiler) -> None:
    # Its message about a pattern that is no string is cut inside a character.
    schema = {"pattern": {"a": "x" * 88 + "\U000f6e13" * 9}}
    source = json.dumps({"grammars": [{"json_schema": schema}]}, ensure_ascii=False)
    with pytest.raises(GrammarError):
        compiler.compile(Grammar(source))


def test_masks_unpack_bit_by_bit() -> None:
    wanted = torch.rand(3, 45, generator=torch.Generator().manual_seed(0)) < 0.5
    padded = np.zeros((3, 64), np.uint8)
    padded[:, :45] = wanted.numpy()
    words = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    assert torch.equal(unpack(torch.from_numpy(words.copy()), 45), wanted)
    assert AllowedTokens([0], wanted).rows == [0]


def test_a_grammar_is_kept_until_its_last_choice_ended(compiler: GrammarCompiler) -> None:
    running = RunningGrammars()
    compiled: CompiledGrammar = compiler.compile(Grammar("start: /a/"))
    running.add("r", compiled, 2)
    assert running.matcher("r", []) is not None and running.matcher("other", []) is None
    running.choice_ended("r")
    running.choice_ended("other")
    assert len(running) == 1
    running.choice_ended("r")
    assert len(running) == 0 and running.matcher("r", []) is None
