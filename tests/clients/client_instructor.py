"""instructor: forced tools and JSON, whole and while they grow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor import Mode
from live import MODEL, URL
from pydantic import BaseModel
from script import call, play, step


class City(BaseModel):
    """A city."""

    name: str
    country: str


class Home(BaseModel):
    """Where somebody lives."""

    person: str


PARIS = {"name": "Paris", "country": "France"}
AS_CALL = play(step("", call("City", **PARIS)))
AS_JSON = play(step('{"name": "Paris", "country": "France"}'))
AS_MARKDOWN = play(step('```json\n{"name": "Paris", "country": "France"}\n```'))


def client(mode: Mode) -> Any:
    plain = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    return instructor.from_openai(plain, mode=mode)


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


MODES = [
    (Mode.TOOLS, AS_CALL),
    (Mode.TOOLS_STRICT, AS_CALL),
    (Mode.JSON, AS_JSON),
    (Mode.JSON_SCHEMA, AS_JSON),
    (Mode.MD_JSON, AS_MARKDOWN),
]


@pytest.mark.parametrize(("mode", "script"), MODES)
def test_a_model_is_filled(mode: Mode, script: str) -> None:
    found = client(mode).create(
        model=MODEL, messages=said(script), response_model=City, max_retries=0
    )
    assert found.model_dump() == PARIS


@pytest.mark.parametrize(("mode", "script"), MODES)
def test_a_model_grows(mode: Mode, script: str) -> None:
    script = script.replace('"City"', '"PartialCity"')  # as the tool is called then
    parts = list(
        client(mode).create_partial(
            model=MODEL, messages=said(script), response_model=City, max_retries=0
        )
    )
    assert parts[-1].model_dump() == PARIS
    assert any(part.name in (None, "") or part.country in (None, "") for part in parts)


def test_several_of_a_kind() -> None:
    towns = [PARIS, {"name": "Rome", "country": "Italy"}]
    script = play(step("", call("IterableCity", tasks=towns)))
    found = client(Mode.TOOLS).create_iterable(
        model=MODEL, messages=said(script), response_model=City, max_retries=0
    )
    assert [one.model_dump() for one in found] == towns


def test_parallel_tools_of_two_kinds() -> None:
    script = play(step("", call("City", **PARIS), call("Home", person="Anna")))
    found = client(Mode.PARALLEL_TOOLS).create(
        model=MODEL,
        messages=said(script),
        response_model=Iterable[City | Home],
        max_retries=0,
    )
    assert [one.model_dump() for one in found] == [PARIS, {"person": "Anna"}]


def test_a_call_in_thinking_mode() -> None:
    script = play(step("", call("City", **PARIS), think="Which country?"))
    found, answer = client(Mode.TOOLS).create_with_completion(
        model=MODEL,
        messages=said(script),
        response_model=City,
        max_retries=0,
        extra_body={"thinking": {"type": "enabled"}},
    )
    assert found.model_dump() == PARIS
    assert answer.choices[0].message.reasoning_content == "Which country?"


class Where(BaseModel):
    """Where Anna lives."""

    city: Literal["Paris", "Rome"]


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_embedded(mode: Mode) -> None:
    """The checkpoint in the repository fills a model."""
    found = client(mode).create(
        model=MODEL,
        messages=said("Anna lives in Paris. Where does Anna live?"),
        response_model=Where,
        max_retries=0,
        temperature=0,
    )
    assert found.city in ("Paris", "Rome")
