"""Grammars that answers must follow: compiled once per request, one matcher per choice.

compiled = GrammarCompiler(folder, vocab_size, eos_token_ids).compile(grammar)
matcher = compiled.matcher(generated_token_ids)
mask = ...                   # engine.token_masks, then the sampler draws
matcher.advance(token)

llguidance does the parsing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits

from engine.messages import Grammar
from engine.vocabulary import Opening, TokenMask, Vocabulary

CACHED_GRAMMARS = 128
CACHED_SOURCE_BYTES = 4 * 2**20
"""Sources of compiled grammars that are kept for the next request with the same schema."""


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or that is too large to be followed."""


def limits() -> LLParserLimits:
    """Returns what one grammar may use. One that needs more ends its choice, and nothing else.

    Tighter than llguidance's own, which let a hostile grammar hold up a step for seconds.
    """
    return LLParserLimits(
        max_items_in_row=1000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=10_000,
        max_lexer_states=100_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class Matcher:
    """Where one choice stands in its grammar."""

    def __init__(self, compiled: CompiledGrammar) -> None:
        self.started = compiled.grammar.after_token is None
        self.error: str | None = None
        """Why the grammar can be followed no further; nothing more can be sampled then."""
        self.parser = compiled.template.deep_copy()
        self._after_token = compiled.grammar.after_token
        self._opening = compiled.opening
        self._tail = b""

    @property
    def masks(self) -> bool:
        """Whether the next token is constrained."""
        return self.started or self._opening is not None

    @property
    def opening_mask(self) -> TokenMask | None:
        """Tokens that may come while the grammar has not started; None when all may."""
        return self._opening.mask(self._tail) if self._opening is not None else None

    def advance(self, token: int) -> None:
        """Takes in a token that was sampled."""
        if not self.started:
            self.started = token == self._after_token
            if self._opening is not None:
                self._tail = self._opening.follow(self._tail, token)
        elif self.error is None:
            try:
                # At its end, repeated ends (of a choice that ignores them) change nothing.
                if not self.parser.is_stopped() and not self.parser.consume_token(token):
                    self.fail(self.parser.get_error())
            except BaseException as error:
                self.fail(reason_of(error))

    def fail(self, error: str) -> None:
        self.error = self.error or error


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar in the form that matchers are copied from; safe to share between threads."""

    grammar: Grammar
    template: LLMatcher
    opening: Opening | None
    """What may come before a grammar that must start; None: anything, or nothing may."""

    def matcher(self, generated: Sequence[int] = ()) -> Matcher:
        """Returns the matcher of a choice that has generated these tokens."""
        matcher = Matcher(self)
        for token in generated:
            matcher.advance(token)
        return matcher


class GrammarCompiler:
    """Compiles grammars for one checkpoint's tokenizer. Any thread may use it."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._file = folder / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._lock = threading.Lock()
        self._read: Vocabulary | None = None
        self._openings: dict[int, Opening] = {}
        self._templates: OrderedDict[str, LLMatcher] = OrderedDict()
        self._cached_bytes = 0

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Returns the grammar compiled; a known source costs nothing.

        Raises GrammarError with llguidance's reason, or when the checkpoint has no tokenizer.
        """
        vocabulary = self._vocabulary()
        with self._lock:
            template = self._templates.get(grammar.source)
            if template is not None:
                self._templates.move_to_end(grammar.source)
        if template is None:
            template = _template(vocabulary, grammar.source)
            self._keep(grammar.source, template)
        return CompiledGrammar(grammar, template, self._opening(grammar, vocabulary))

    def _keep(self, source: str, template: LLMatcher) -> None:
        with self._lock:
            if source in self._templates:
                return
            self._templates[source] = template
            self._cached_bytes += len(source)
            while len(self._templates) > CACHED_GRAMMARS or (
                self._cached_bytes > CACHED_SOURCE_BYTES and len(self._templates) > 1
            ):
                oldest, _ = self._templates.popitem(last=False)
                self._cached_bytes -= len(oldest)

    def _opening(self, grammar: Grammar, vocabulary: Vocabulary) -> Opening | None:
        token = grammar.after_token
        if token is None:
            return None
        if not 0 <= token < self._vocab_size:
            raise GrammarError(
                f"the grammar starts after token {token}; tokens are in [0, {self._vocab_size - 1}]"
            )
        if not grammar.required:
            return None
        with self._lock:
            if token not in self._openings:
                self._openings[token] = Opening(vocabulary, token)
            return self._openings[token]

    def _vocabulary(self) -> Vocabulary:
        """Reads the tokenizer at the first grammar: many servers may never see one."""
        with self._lock:
            if self._read is None:
                if not self._file.is_file():
                    raise GrammarError("the checkpoint has no tokenizer.json to write grammars in")
                self._read = Vocabulary(self._file, self._vocab_size, self._eos_token_ids)
            return self._read


class RunningGrammars:
    """The compiled grammars of requests that still have a choice to finish."""

    def __init__(self) -> None:
        self._grammars: dict[str, tuple[CompiledGrammar, int]] = {}

    def add(self, request_id: str, compiled: CompiledGrammar, choices: int) -> None:
        self._grammars[request_id] = compiled, choices

    def matcher(self, request_id: str, generated: Sequence[int]) -> Matcher | None:
        """Returns a matcher for a choice of the request, None if the request has no grammar."""
        found = self._grammars.get(request_id)
        return found[0].matcher(generated) if found else None

    def choice_ended(self, request_id: str) -> None:
        """Forgets the grammar with the last choice of its request."""
        found = self._grammars.get(request_id)
        if found is None:
            return
        compiled, choices = found
        if choices > 1:
            self._grammars[request_id] = compiled, choices - 1
        else:
            del self._grammars[request_id]

    def __len__(self) -> int:
        return len(self._grammars)


def reason_of(error: BaseException) -> str:
    """Returns why a call to llguidance failed; its panics are no Exceptions. Raises all else."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return f"{type(error).__name__}: {error}"
    raise error


def first_line(error: str) -> str:
    """Returns the reason in an error of llguidance without what it prints behind it."""
    return (error.splitlines() or [""])[0][:300]


def _template(vocabulary: Vocabulary, source: str) -> LLMatcher:
    try:
        template = LLMatcher(vocabulary.tokenizer, source, log_level=0, limits=limits())
        if not template.is_error():
            # The first mask too: what is out of bounds from the start is refused here, and the
            # lexer's first states, which all copies share, are made outside of the step loop.
            template.compute_bitmask()
    except BaseException as error:
        raise GrammarError(first_line(reason_of(error))) from error
    if template.is_error():
        raise GrammarError(first_line(template.get_error()))
    return template
