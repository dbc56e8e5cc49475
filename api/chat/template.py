"""The prompt texts a checkpoint ships, read as data. Nothing in the file is ever executed."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from api.chat.json_text import to_json
from api.chat.markers import BOS, CONTROL_MARKERS, DSML, EOS, THINK_END, THINK_START

MODULE_PATH = Path("encoding", "encoding_dsv32.py")

_TOOLS_NAME = "TOOLS_SYSTEM_TEMPLATE"
_FORMAT_NAME = "response_format_template"
_EXPECTED_TOKENS = {
    "bos_token": BOS,
    "eos_token": EOS,
    "thinking_start_token": THINK_START,
    "thinking_end_token": THINK_END,
    "dsml_token": DSML,
}
_PLACEHOLDER = re.compile(r"\{\w*\}|[{}]")
_MARKER = re.compile("|".join(re.escape(marker) for marker in CONTROL_MARKERS))


class TemplateError(ValueError):
    """The checkpoint's prompt texts are missing or have a form that cannot be used."""


class Piece(NamedTuple):
    """A stretch of prompt text. ``control`` marks one special string that becomes one token."""

    text: str
    control: bool


class Template:
    """The tools block and the response format block of one checkpoint.

    A text that is None is missing: the checkpoint can still serve requests that do not need it.
    Raises TemplateError for an unknown placeholder, a doubled or stray brace, or a text that lacks
    the placeholder for the caller's JSON.
    """

    def __init__(self, tools: str | None = None, response_format: str | None = None) -> None:
        tokens = {"dsml_token", "thinking_start_token", "thinking_end_token"}
        self._tools = _compile(_TOOLS_NAME, tools, tokens, "tool_schemas")
        self._response_format = _compile(_FORMAT_NAME, response_format, set(), "schema")

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Template":
        """Returns the template in a checkpoint folder, an empty one when it ships none."""
        path = Path(folder) / MODULE_PATH
        return cls.from_file(path) if path.is_file() else cls()

    @classmethod
    def from_file(cls, path: Path | str) -> "Template":
        """Returns the template in a Python file, which is parsed and not run."""
        return cls.from_source(Path(path).read_text(encoding="utf-8"))

    @classmethod
    def from_source(cls, source: str) -> "Template":
        """Returns the template among the module-level string constants of Python source text.

        Raises TemplateError when the source does not parse, when one of the two texts is there but
        is not a constant, or when the module names a special string that differs from V3.2's.
        """
        constants = _string_constants(source)
        for name, expected in _EXPECTED_TOKENS.items():
            found = constants.get(name, expected)
            if found != expected:
                raise TemplateError(f"{name} is {found!r}; DeepSeek-V3.2 has {expected!r}")
        for name in (_TOOLS_NAME, _FORMAT_NAME):
            if name in constants and constants[name] is None:
                raise TemplateError(f"{name} is not a string constant")
        return cls(constants.get(_TOOLS_NAME), constants.get(_FORMAT_NAME))

    def tools_pieces(self, schemas: Sequence[Mapping[str, Any]]) -> list[Piece]:
        """Returns the tools block for the inner ``function`` objects, one JSON line each.

        Keys keep their order. Raises TemplateError when the checkpoint ships no such text.
        """
        if self._tools is None:
            raise TemplateError(f"the checkpoint has no {_TOOLS_NAME} in {MODULE_PATH}")
        return _fill(self._tools, "\n".join(to_json(schema) for schema in schemas))

    def tools_block(self, schemas: Sequence[Mapping[str, Any]]) -> str:
        """Returns the tools block as one string; see :meth:`tools_pieces`."""
        return "".join(piece.text for piece in self.tools_pieces(schemas))

    def response_format_pieces(self, schema: Mapping[str, Any]) -> list[Piece]:
        """Returns the response format block. Raises TemplateError when there is no text for it."""
        if self._response_format is None:
            raise TemplateError(f"the checkpoint has no {_FORMAT_NAME} in {MODULE_PATH}")
        return _fill(self._response_format, to_json(schema))

    def response_format_block(self, schema: Mapping[str, Any]) -> str:
        """Returns the response format block as one string."""
        return "".join(piece.text for piece in self.response_format_pieces(schema))


def _string_constants(source: str) -> dict[str, str | None]:
    """Returns name -> text of module-level assignments, None where the value is something else."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TemplateError(f"the template file is not Python source: {error}") from error
    constants: dict[str, str | None] = {}
    for statement in module.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            if isinstance(target, ast.Name):
                constants[target.id] = _string_value(statement)
    return constants


def _string_value(statement: ast.stmt) -> str | None:
    assert isinstance(statement, ast.Assign | ast.AnnAssign)
    if isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
        return statement.value.value
    return None


_Compiled = list[Piece | None]
"""The text cut at its markers and placeholders; None stands for the caller's JSON."""


def _compile(name: str, text: str | None, tokens: set[str], json_name: str) -> _Compiled | None:
    if text is None:
        return None
    compiled: _Compiled = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        compiled.extend(_pieces(text[position : match.start()]))
        placeholder = match.group()[1:-1]
        if placeholder == json_name:
            compiled.append(None)
        elif placeholder in tokens:
            compiled.append(Piece(_EXPECTED_TOKENS[placeholder], True))
        else:
            raise TemplateError(
                f"{name} holds {match.group()!r} at character {match.start()}; the placeholders "
                f"are {sorted(tokens | {json_name})}"
            )
        position = match.end()
    compiled.extend(_pieces(text[position:]))
    if compiled.count(None) != 1:
        raise TemplateError(f"{name} must hold {{{json_name}}} once")
    return compiled


def _pieces(text: str) -> Iterable[Piece]:
    """Yields the text cut at the special strings the checkpoint's author wrote out in it."""
    position = 0
    for match in _MARKER.finditer(text):
        yield Piece(text[position : match.start()], False)
        yield Piece(match.group(), True)
        position = match.end()
    yield Piece(text[position:], False)


def _fill(compiled: _Compiled, caller_json: str) -> list[Piece]:
    """One pass: what the caller wrote is never looked at again."""
    pieces = [Piece(caller_json, False) if piece is None else piece for piece in compiled]
    return [piece for piece in pieces if piece.text]
