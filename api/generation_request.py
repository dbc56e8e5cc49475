"""What requests of every dialect have in common: how a body is read, and what is checked alike.

Fields are honoured, accepted because they change nothing, or refused because they would change the
answer and are not honoured yet. Nothing is dropped silently: a field nobody knows is logged once.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from api.errors import ApiError, from_validation, invalid, unsupported
from api.facts import ModelFacts
from api.fields import TextFields
from api.grammar.answers import AnswerDemand
from api.grammar.formats import (
    AnswerFormat,
    only_one,
    read_named,
    read_response_format,
    read_structured_outputs,
)
from api.protection.limits import check_sizes
from api.protection.nesting import MAX_NESTING, check_nesting, deep_field, too_deep
from api.protection.priority import HIGHEST, LOWEST
from api.sampling import within
from engine.messages import Sampling

logger = logging.getLogger("winnow.api")

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
"""Text that may yet become a stop string is held back and searched again at every token."""
USER_ID = re.compile(r"[A-Za-z0-9_-]{1,512}")

_decoder = msgspec.json.Decoder(dict[str, Any])
_warned_fields: set[str] = set()


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What every validated request says, whatever its prompts are made of."""

    model: str
    sampling: Sampling
    n: int
    """Choices of each prompt."""
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    return_token_ids: bool = False
    """The answer also carries the ids of its tokens and of the prompt's."""
    tokens_as_ids: bool = False
    """Log-probabilities name tokens by their ids."""
    tenant: str
    cache_salt: str
    priority: int | None
    """None: the sender's own."""
    answer: AnswerDemand | None = None
    """What the answer has to be; None: anything."""
    max_reasoning_tokens: int | None = None
    """Reasoning tokens after which the answer begins; None: no limit."""
    prompt_logprobs: int | None = None
    """The answer carries those of the prompt's tokens, with so many of the most likely ones beside
    each; None: it does not."""


def read_fields(body: bytes) -> dict[str, Any]:
    """Returns the object in `body`.

    Raises ApiError(400) when it holds none, or one that is nested too deeply to be worked with.
    """
    try:
        fields = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", None, "invalid_json") from error
    except RecursionError as error:
        raise too_deep(deep_field(body)) from error
    if body.count(b"[") + body.count(b"{") > MAX_NESTING:
        check_nesting(fields)
    return fields


@contextlib.contextmanager
def nesting_refused(param: str | None = None) -> Iterator[None]:
    """Turns what a text in the body does to whoever walks through it, as JSON nested too deeply,
    into ApiError(400).

    The body itself has few levels; the arguments of a call come as a text of any depth.
    """
    try:
        yield
    except RecursionError as error:
        raise too_deep(param) from error


def checked_model(name: str, facts: ModelFacts) -> str:
    """Returns the name that answers carry. Raises ApiError(404) for a model that is not served."""
    if name not in facts.names:
        raise ApiError(
            404,
            f"The model {name!r} does not exist; this server has {facts.names[0]!r}.",
            param="model",
            code="model_not_found",
        )
    return facts.names[0]


def refuse_unhonoured(fields: Mapping[str, Any], refused: frozenset[str]) -> None:
    """Raises ApiError(400) for a field out of `refused` that asks for something."""
    for name, value in fields.items():
        if name in refused and _asks_for_something(name, value):
            raise unsupported(name, name)


def refuse_of_chat(
    fields: Mapping[str, Any], of_chat: frozenset[str], names: Mapping[str, str]
) -> None:
    """Raises ApiError(400) for a field of chat completions that another dialect does not have, and
    that asks for something.

    of_chat: those fields; names: what some of them are called in the dialect.
    """
    for name, value in fields.items():
        if name in of_chat and _asks_for_something(name, value):
            here = f"; here it is {names[name]}" if name in names else ""
            raise invalid(
                f"{name} is a field of chat completions{here}.", name, "unsupported_parameter"
            )


_USUAL = {"n": 1, "add_generation_prompt": True, "modalities": ["text"]}
"""Field -> the only value beside null that changes nothing, where that is not false or empty."""


def _asks_for_something(name: str, value: Any) -> bool:
    """An empty object switches web search on; elsewhere what is empty asks for nothing."""
    if name == "web_search_options":
        return value is not None
    if name in _USUAL:
        return value is not None and value != _USUAL[name]
    return value is not None and value is not False and value not in ("", [], {})


def warn_of_unknown(fields: Iterable[str], known: frozenset[str]) -> None:
    """Logs fields that nobody knows, one line per field and process.

    The names come from clients, so their number is bounded.
    """
    for name in fields:
        if name not in known and name not in _warned_fields and len(_warned_fields) < 1000:
            _warned_fields.add(name)
            logger.warning("ignoring the unknown request field %.100r", name)


def answer_format(request: TextFields) -> AnswerFormat | None:
    """Returns the form of the text, in whoever's words. Raises ApiError(400) for two of them."""
    names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf")
    formats = [
        *read_structured_outputs(request.structured_outputs),
        *read_named({name: getattr(request, name) for name in names}),
    ]
    if (format_ := read_response_format(request.response_format)) is not None:
        formats.insert(0, format_)
    return only_one(formats)


def common_values(request: TextFields) -> dict[str, Any]:
    """Returns the values of a GenerationRequest that chat and text completions state alike.

    Raises ApiError(400) naming the field at fault.
    """
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options needs stream: true.", "stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("prompt_logprobs come with whole answers only.", "prompt_logprobs")
    check_sizes(request.cache_salt, request.logit_bias, request.stop_token_ids)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return {
        "n": within(1 if request.n is None else request.n, 1, MAX_CHOICES, "n"),
        "stops": checked_stops(stops, "stop"),
        "stream": bool(request.stream),
        "include_usage": bool(request.stream_options and request.stream_options.include_usage),
        "return_token_ids": bool(request.return_token_ids),
        "tokens_as_ids": bool(request.return_tokens_as_token_ids),
        "tenant": checked_user_id(request.user_id, "user_id"),
        "cache_salt": request.cache_salt or "",
        "priority": checked_priority(request.priority),
        "prompt_logprobs": request.prompt_logprobs,
    }


def checked_stops(stops: Sequence[str], param: str) -> tuple[str, ...]:
    """Returns the stop strings of field `param`. Raises ApiError(400)."""
    if len(stops) > MAX_STOPS:
        raise invalid(f"{len(stops)} stop strings were given; the limit is {MAX_STOPS}.", param)
    if "" in stops:
        raise invalid("A stop string must not be empty.", param)
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise invalid(
            f"A stop string has {longest} characters; the limit is {MAX_STOP_CHARACTERS}.", param
        )
    return tuple(stops)


def checked_priority(priority: int | None) -> int | None:
    """Returns the priority. Raises ApiError(400) for one out of range."""
    return None if priority is None else within(priority, LOWEST, HIGHEST, "priority")


def checked_user_id(user_id: str | None, param: str) -> str:
    """Returns the user id of field `param`, "" for none. Raises ApiError(400)."""
    if user_id is None:
        return ""
    if not USER_ID.fullmatch(user_id):
        raise invalid(
            f"{param} has 1 to 512 characters out of letters, digits, '_' and '-'.", param
        )
    return user_id
