"""api.errors: messages name the field as clients write it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from api.errors import ApiError, from_status, from_validation
from api.schema import ChatCompletionRequest

MESSAGE = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "model"),
        ({"model": "m"}, "messages"),
        ({"messages": [MESSAGE]}, "model"),
        ({"messages": "Hi", "model": "m"}, "messages"),
        ({"messages": [{"role": "user", "content": 1}], "model": "m"}, "messages[0].content"),
        ({"messages": [MESSAGE, {"content": ""}], "model": "m"}, "messages[1].role"),
        ({"messages": [{"role": "robot"}], "model": "m"}, "messages[0].role"),
        ({"messages": [MESSAGE], "model": "m", "n": "two"}, "n"),
        ({"messages": [MESSAGE], "model": "m", "n": True}, "n"),
        ({"messages": [MESSAGE], "model": "m", "logit_bias": {"1": "x"}}, "logit_bias"),
        ({"messages": [MESSAGE], "model": "m", "stop": [1]}, "stop[0]"),
    ],
)
def test_wrong_types_name_their_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(fields, ChatCompletionRequest)
    error = from_validation(caught.value)
    assert (error.status, error.param) == (400, param)
    assert "$" not in error.message


def test_the_body_is_openais() -> None:
    error = ApiError(429, "too much", code="queue_full", retry_after=2.2)
    assert msgspec.to_builtins(error.body) == {
        "error": {
            "message": "too much",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
    }
    assert error.headers == {"retry-after": "3", "retry-after-ms": "2200"}


@pytest.mark.parametrize(
    ("status", "type_"),
    [(400, "invalid_request_error"), (500, "server_error"), (503, "overloaded")],
)
def test_types_follow_the_status(status: int, type_: str) -> None:
    assert ApiError(status, "").type == type_


def test_the_frameworks_errors_get_a_code() -> None:
    assert from_status(405).code == "method_not_allowed"
