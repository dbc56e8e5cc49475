"""From what a request demands of its answer to the grammar the engine holds it to.

| the request demands           | the grammar starts        | and says                          |
| ----------------------------- | ------------------------- | --------------------------------- |
| a call                        | behind the reasoning      | a block of calls                  |
| a format                      | behind the reasoning      | the format                        |
| a format, and calls may come  | behind the reasoning      | a block of calls, or the format   |
| nothing, but calls have rules | behind a call's first tag | the rest of the block of calls    |

Grammars are made and checked outside of the event loop, before the engine hears of the request.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, grammar_from, regex_to_lark

from api.errors import ApiError, invalid, unsupported
from api.grammar.calls import CallGrammar
from api.grammar.formats import AnswerFormat
from api.grammar.schema import SchemaError, check_limits, sealed, with_options
from api.grammar.values import literal
from api.tools import CallDemand
from engine.messages import Grammar

CACHED_BYTES = 4 * 2**20
"""Demands and their grammars that are kept for the next request like it."""
THREADS = 2
ANSWER_SPACES = r"[ ]|\n[ ]{0,40}"
"""Between the tokens of a JSON answer: any usual indentation, and never white space on and on."""


class AnswerDemand(msgspec.Struct, frozen=True):
    """What a request demands of its answer: of its calls, of its text, or of both."""

    calls: CallDemand | None = None
    format: AnswerFormat | None = None

    @classmethod
    def of(
        cls, calls: CallDemand | None, format_: AnswerFormat | None, *, continues: bool = False
    ) -> AnswerDemand | None:
        """Returns what is demanded, None when the model may answer as it likes.

        calls: None when there may be none. A required call leaves nothing to say of a text.
        continues: the answer has begun already; then nothing can be demanded: ApiError(400).
        """
        demand = None
        if calls is not None and calls.required:
            demand = cls(calls)
        elif format_ is not None or (calls is not None and calls.restricted):
            demand = cls(calls, format_)
        if demand is not None and continues:
            param = demand.format.param if demand.format is not None else "tool_choice"
            raise unsupported(param, "Constraining an answer that continues a message")
        return demand


class Grammars:
    """Makes the grammars of one model's requests, and keeps the last ones."""

    def __init__(self, think_end_token_id: int, dsml_token_id: int) -> None:
        self.think_end_token_id = think_end_token_id
        self.dsml_token_id = dsml_token_id
        self._calls = CallGrammar(dsml_token_id)
        self._threads = ThreadPoolExecutor(THREADS, "grammars")
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Grammar] = OrderedDict()
        self._known_bytes = 0

    async def grammar(self, demand: AnswerDemand, *, in_reasoning: bool) -> Grammar:
        """Returns the grammar of an answer; in_reasoning: the prompt ends in open reasoning.

        Raises ApiError(400) that names the field with the schema, regex or grammar at fault.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._known_or_made, demand, in_reasoning)

    def _known_or_made(self, demand: AnswerDemand, in_reasoning: bool) -> Grammar:
        try:
            key = b"%d" % in_reasoning + msgspec.json.encode(demand)
        except RecursionError:
            return self.make(demand, in_reasoning)  # which refuses what is nested so deeply
        with self._lock:
            if (found := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return found
        made = self.make(demand, in_reasoning)
        with self._lock:
            if key not in self._known:
                self._known[key] = made
                self._known_bytes += len(key) + len(made.source)
            while self._known_bytes > CACHED_BYTES:
                old, grammar = self._known.popitem(last=False)
                self._known_bytes -= len(old) + len(grammar.source)
        return made

    def make(self, demand: AnswerDemand, in_reasoning: bool) -> Grammar:
        """Returns what :meth:`grammar` returns, at once and every time anew."""
        calls, format_ = demand.calls, demand.format
        after = self.think_end_token_id if in_reasoning else None
        if calls is not None and (calls.required or format_ is None):
            rules = self._call_rules(calls)
            param = calls.params[0]
            if calls.required:
                return Grammar(_checked(f"start: calls\n{rules}", param), after, True, param)
            return Grammar(
                _checked(f"start: block\n{rules}", param), self.dsml_token_id, False, param
            )
        assert format_ is not None
        answer = _answer(format_)
        if calls is None:
            source = _checked({"grammars": [answer]}, format_.param)
        else:
            lark = f"start: calls | @answer\n{self._call_rules(calls)}"
            both = {"grammars": [{"lark_grammar": lark}, {"name": "answer", **answer}]}
            source = _checked(both, format_.param)
        return Grammar(source, after, True, format_.param)

    def _call_rules(self, calls: CallDemand) -> str:
        rules = [
            self._function(index, function, param)
            for index, (function, param) in enumerate(
                zip(calls.functions, calls.params, strict=True)
            )
        ]
        return self._calls.rules(rules, one_call=calls.one_call)

    def _function(self, index: int, function: Mapping[str, Any], param: str) -> str:
        """The rules of one function; any arguments go when its schema is no use and not strict."""
        strict = bool(function.get("strict"))
        try:
            check_limits(function.get("parameters") or {})
            rules = self._calls.function(index, function, strict=strict)
            # By itself, so that a schema llguidance does not take can be told from the others.
            alone = self._calls.function(0, function, strict=strict)
            reason = _fault(f"start: block\n{self._calls.rules([alone], one_call=True)}")
        except RecursionError:
            reason = "its references are nested too deeply"
        except SchemaError as error:
            reason = str(error)
        if not reason:
            return rules
        if strict:
            raise _unusable(reason, param)
        return self._calls.free(index, function["name"])


def _answer(format_: AnswerFormat) -> dict[str, Any]:
    """Returns a format as one of llguidance's grammars. Raises ApiError(400)."""
    try:
        if format_.kind == "json_schema":
            check_limits(format_.value)
            schema = sealed(format_.value, format_.value)
            options = with_options(schema, strict=format_.strict, spaces=ANSWER_SPACES)
            return {"json_schema": options}
        if format_.kind == "choice":
            return {"lark_grammar": "start: " + " | ".join(map(literal, format_.value))}
        if format_.kind == "regex":
            return {"lark_grammar": f"start: /{regex_to_lark(format_.value, use_ascii='')}/"}
        return {"lark_grammar": grammar_from("grammar", format_.value)}
    except (SchemaError, ValueError, RecursionError) as error:
        raise _unusable(str(error), format_.param) from error


def _checked(grammar: str | dict[str, Any], param: str) -> str:
    """Returns the grammar's source. Raises ApiError(400) when llguidance does not take it."""
    source = grammar if isinstance(grammar, str) else json.dumps(grammar, ensure_ascii=False)
    if reason := _fault(source):
        raise _unusable(reason, param)
    return source


def _fault(source: str) -> str:
    """Returns what is wrong with a grammar, "" for nothing."""
    try:
        source.encode()
    except UnicodeEncodeError:
        return "it holds an unpaired surrogate"
    limits = LLParserLimits(verbose_errors=False)
    try:
        is_error, messages = LLMatcher.validate_grammar_with_warnings(source, limits=limits)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # llguidance's, and no Exception
            raise
        return "llguidance cannot read it"
    return (messages[0].splitlines() or ["it is not valid"])[0][:300] if is_error else ""


def _unusable(reason: str, param: str) -> ApiError:
    return invalid(
        f"The answer cannot be constrained by {param}: {reason}.", param, "invalid_grammar"
    )
