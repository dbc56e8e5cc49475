import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.chat.arguments import ArgumentsWriter

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def write(parameters: list[tuple[str, bool, list[str]]], known: list[str] | None = None) -> str:
    writer = ArgumentsWriter(known)
    parts = [writer.OPEN]
    for key, is_string, pieces in parameters:
        parts.append(writer.begin(key, is_string))
        parts.extend(writer.add(piece) for piece in pieces)
        parts.append(writer.end())
    return "".join([*parts, writer.CLOSE])


@given(st.dictionaries(st.text(), st.lists(st.text())), st.dictionaries(st.text(), VALUES))
def test_parameters_become_an_object(
    strings: dict[str, list[str]], values: dict[str, object]
) -> None:
    parameters = [(f"s{key}", True, pieces) for key, pieces in strings.items()]
    parameters += [(f"v{key}", False, list(json.dumps(value))) for key, value in values.items()]
    assert json.loads(write(parameters)) == {
        **{f"s{key}": "".join(pieces) for key, pieces in strings.items()},
        **{f"v{key}": value for key, value in values.items()},
    }


def test_json_values_are_copied_as_written() -> None:
    assert write([("a", False, ["1e5"]), ("b", False, [' {"x":1} '])]) == (
        '{"a": 1e5, "b":  {"x":1} }'
    )


@pytest.mark.parametrize("text", ["Paris", "", "NaN", "[1", "1" * 5000, "[" * 100_000, '"\\ud83d"'])
def test_what_is_not_json_becomes_a_string(text: str) -> None:
    assert json.loads(write([("a", False, [text])])) == {"a": text}


def test_strings_stream() -> None:
    writer = ArgumentsWriter(None)
    assert [writer.begin("a", True), writer.add('"x'), writer.add("\né"), writer.end()] == [
        *('"a": "', '\\"x', "\\né", '"')
    ]


INNER = '{"city": "Paris", "days": 2}'


@pytest.mark.parametrize("is_string", [True, False])
@pytest.mark.parametrize("key", ["arguments", "input"])
def test_wrapped_arguments_are_unwrapped(key: str, is_string: bool) -> None:
    assert write([(key, is_string, [INNER])], ["city", "days"]) == INNER


@pytest.mark.parametrize(
    ("key", "known", "text"),
    [
        ("arguments", None, INNER),
        ("arguments", ["arguments", "city", "days"], INNER),
        ("arguments", ["city"], INNER),
        ("arguments", ["city", "days"], "{}"),
        ("arguments", ["city", "days"], "[1]"),
        ("city", ["days"], INNER),
    ],
)
def test_other_parameters_stay_as_they_are(key: str, known: list[str] | None, text: str) -> None:
    assert json.loads(write([(key, False, [text])], known)) == {key: json.loads(text)}
    assert json.loads(write([(key, True, [text])], known)) == {key: text}


def test_unwrapped_parameters_count_as_written() -> None:
    writer = ArgumentsWriter(["city", "days"])
    writer.begin("input", False)
    writer.add(INNER)
    writer.end()
    assert writer.has("city") and writer.has("days") and not writer.has("input")
