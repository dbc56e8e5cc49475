"""Grammars put to the test: does one accept a text, encoded as the model would write it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from api.chat.json_text import to_json
from api.chat.markers import DSML
from api.grammar.answers import AnswerDemand, Grammars
from api.tools import CallDemand
from engine.grammar import GrammarCompiler
from engine.messages import Grammar
from tests.checkpoints import SPECIAL_TOKENS, write_tokenizer

IDS = {text: token_id for token_id, text in enumerate(SPECIAL_TOKENS)}
GRAMMARS = Grammars(IDS["</think>"], IDS[DSML])


@functools.cache
def tools() -> tuple[GrammarCompiler, Tokenizer]:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        compiler = GrammarCompiler(Path(folder), 320, (1,))
        compiler.compile(Grammar("start: /a/"))  # reads the tokenizer while it is there
        return compiler, Tokenizer.from_file(f"{folder}/tokenizer.json")


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether `text` is a whole answer under the grammar, token by token."""
    compiler, tokenizer = tools()
    matcher = compiler.compile(msgspec.structs.replace(grammar, after_token=None)).matcher()
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        if matcher.parser.is_stopped():
            return False  # and there is more to come
        matcher.advance(token)
        if matcher.error is not None:
            return False
    return matcher.parser.is_accepting()


def forced(*functions: dict[str, Any], one_call: bool = False) -> Grammar:
    """The grammar of an answer that has to be calls of these functions."""
    params = [f"tools[{index}].function.parameters" for index in range(len(functions))]
    demand = CallDemand(list(functions), params, required=True, one_call=one_call, restricted=True)
    return GRAMMARS.make(AnswerDemand(demand), in_reasoning=False)


def strict(name: str = "f", /, *required: str, **properties: Any) -> dict[str, Any]:
    """A strict function with these properties."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "strict": True, "parameters": parameters}


def call(name: str, arguments: dict[str, Any]) -> str:
    """One call as the reference writes it."""
    lines = [
        f'<{DSML}parameter name="{key}" string="{str(isinstance(value, str)).lower()}">'
        f"{value if isinstance(value, str) else to_json(value)}</{DSML}parameter>"
        for key, value in arguments.items()
    ]
    return f'<{DSML}invoke name="{name}">\n' + "\n".join(lines) + f"\n</{DSML}invoke>"


def block(*calls: str) -> str:
    """A block of calls, with the separator before it."""
    return f"\n\n<{DSML}function_calls>\n" + "\n".join(calls) + f"\n</{DSML}function_calls>"
