"""api.protection.keys: a file of keys, read again when it changes, unharmed by a bad one."""

from __future__ import annotations

import hmac
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from api.protection.keys import LOOK_AGAIN_S, KeyFile, KeyLimits
from engine.client import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(
        "# ours\nsk-one\n\n"
        "  sk-two requests=4 tokens_per_minute=6000  # a guest\n"
        "sk-three requests=1\n"
    )
    return path


def test_keys_and_their_limits(file: Path) -> None:
    found = KeyFile(str(file), KeyLimits(requests=9))
    one, two, three = (found.find(f"sk-{name}") for name in ("one", "two", "three"))
    assert one is not None and two is not None and three is not None
    assert one.limits == KeyLimits(requests=9)
    assert two.limits == KeyLimits(4, 6000)
    assert three.limits == KeyLimits(1)
    assert len({one.tenant, two.tenant, three.tenant}) == 3
    assert "sk-one" not in repr(found.find("sk-one"))
    for unknown in ("", "sk-on", "sk-one ", "sk-onee", "#", "# ours", "requests=4"):
        assert found.find(unknown) is None


def test_every_key_is_compared_whichever_was_sent(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append(second)
        return hmac.compare_digest(first, second)

    monkeypatch.setattr("api.protection.keys.hmac", SimpleNamespace(compare_digest=compare))
    found = KeyFile(str(file), KeyLimits())
    counts = []
    for key in ("sk-one", "sk-three", "wrong"):
        compared.clear()
        found.find(key)
        counts.append(len(compared))
    assert counts == [3, 3, 3]


def test_a_changed_file_is_read_again(file: Path) -> None:
    clock = Clock()
    found = KeyFile(str(file), KeyLimits(), clock)
    file.write_text("sk-four\n")
    assert found.find("sk-four") is None, "not looked at again yet"
    clock.now_s = LOOK_AGAIN_S
    assert found.find("sk-four") is not None and found.find("sk-one") is None
    # A file moved into its place, as deployments do it.
    other = file.with_name("other")
    other.write_text("sk-five\n")
    other.replace(file)
    clock.now_s = 2 * LOOK_AGAIN_S
    assert found.find("sk-five") is not None and found.find("sk-four") is None


@pytest.mark.parametrize("content", [None, "", "sk-x requests=0\n", b"\xff\xfe"])
def test_a_bad_file_leaves_the_keys_as_they_were(
    file: Path, content: str | bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = KeyFile(str(file), KeyLimits())
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content)
    with caplog.at_level(logging.ERROR, "winnow.api"):
        found.reload()
    assert found.find("sk-one") is not None
    assert "stay as they were" in caplog.text and "sk-" not in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sk-x requests=0", "line 1: requests is 0"),
        ("sk-x requests=many", "line 1"),
        ("sk-x request=1", "line 1"),
        ("sk-x tokens_per_minute=-1", "line 1: tokens_per_minute is -1"),
        ("# nothing", "holds no key"),
    ],
)
def test_what_is_wrong_is_named_without_the_key(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(ConfigError) as caught:
        KeyFile(str(file), KeyLimits())
    assert message in str(caught.value) and "sk-x" not in str(caught.value)
