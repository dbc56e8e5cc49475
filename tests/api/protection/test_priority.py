"""api.protection.priority: nobody passes others by saying so, unless the operator lets them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.config import ServerConfig
from api.errors import ApiError
from api.protection.keys import KeyFile, KeyLimits
from api.protection.priority import PriorityRule
from api.server import create_app
from engine.client import ConfigError
from tests.api.scripted_engine import MODEL, Scripted

USER = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 9},
}


@pytest.mark.parametrize(
    ("rule", "asked", "found"),
    [
        (PriorityRule(), None, 0),
        (PriorityRule(), -5, -5),
        (PriorityRule(own=3), None, 3),
        (PriorityRule(own=3, free=False), 3, 3),
        (PriorityRule(own=3, free=False), 2**31 - 1, 2**31 - 1),
        (PriorityRule(own=3, free=False), 2, None),
        (PriorityRule(free=False), -1, None),
    ],
)
def test_who_may_go_before_whom(rule: PriorityRule, asked: int | None, found: int | None) -> None:
    if found is not None:
        assert rule.of(asked) == found
        return
    with pytest.raises(ApiError) as caught:
        rule.of(asked)
    assert (caught.value.status, caught.value.param) == (400, "priority")


def test_a_key_has_a_priority_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-late priority=10\nsk-early priority=-1 requests=2\nsk-plain\n")
    keys = KeyFile(str(file), KeyLimits())
    found = [keys.find(f"sk-{name}") for name in ("late", "early", "plain")]
    assert [key.limits.priority for key in found if key is not None] == [10, -1, 0]
    file.write_text("sk-late priority=99999999999\n")
    with pytest.raises(ConfigError, match="priority is 99999999999"):
        KeyFile(str(file), KeyLimits())


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("config", "key", "asked", "runs_at"),
    [
        ({}, None, None, 0),
        ({}, None, 5, 5),
        ({}, None, -1, None),
        ({"client_priority": True}, None, -1, -1),
        ({"keys": "k priority=7"}, "k", None, 7),
        ({"keys": "k priority=7"}, "k", 8, 8),
        ({"keys": "k priority=7"}, "k", 6, None),
        ({"keys": "k priority=7", "client_priority": True}, "k", -9, -9),
    ],
)
def test_every_route_holds_a_request_to_it(
    scripted: Scripted,
    tmp_path: Path,
    path: str,
    config: dict[str, Any],
    key: str | None,
    asked: int | None,
    runs_at: int | None,
) -> None:
    settings = dict(config)
    if (keys := settings.pop("keys", None)) is not None:
        (tmp_path / "keys").write_text(keys)
        settings["api_key_file"] = str(tmp_path / "keys")
    app = create_app(scripted.backend, ServerConfig(**settings))
    fields = {"model": MODEL, **BODIES[path], **({} if asked is None else {"priority": asked})}

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://winnow") as http:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return await http.post(path, json=fields, headers=headers)

    answer = asyncio.run(run())
    if runs_at is None:
        assert answer.status_code == 400 and "priority" in answer.text
        assert not scripted.engine.submits
    else:
        assert answer.status_code == 200, answer.text
        assert [submit.priority for submit in scripted.engine.submits] == [runs_at]
