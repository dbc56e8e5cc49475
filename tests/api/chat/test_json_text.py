import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.chat.json_text import NOT_JSON, parse_json, to_json, to_json_string_part


def test_style_of_the_trained_format() -> None:
    assert to_json({"b": [1, "é"], "a": None}) == '{"b": [1, "é"], "a": null}'


@given(st.lists(st.text()))
def test_parts_of_a_string_add_up(parts: list[str]) -> None:
    document = f'"{"".join(to_json_string_part(part) for part in parts)}"'
    assert json.loads(document) == "".join(parts)


@pytest.mark.parametrize(
    ("text", "value"), [("null", None), (" [1, 2.5] ", [1, 2.5]), ('{"a": {}}', {"a": {}})]
)
def test_documents_are_read(text: str, value: object) -> None:
    assert parse_json(text) == value


@pytest.mark.parametrize(
    "text", ["", "x", "{", "NaN", "-Infinity", "1 2", '"\\ud83d"', "[" * 100_000, "9" * 5000]
)
def test_other_text_is_not_json(text: str) -> None:
    assert parse_json(text) is NOT_JSON
