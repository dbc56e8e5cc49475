import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.retention import Span, flip_point, keeps_reasoning, last_user_index

ROLES = st.lists(st.sampled_from(["system", "user", "developer", "assistant", "tool"]), max_size=12)


@given(ROLES, st.booleans())
def test_rule_equals_its_restatement(roles: list[str], thinking: bool) -> None:
    """An assistant message keeps its reasoning when no message from the user follows it."""
    last_user = last_user_index(roles)
    for index, role in enumerate(roles):
        if role == "assistant":
            followed = any(later in ("user", "developer") for later in roles[index:])
            assert keeps_reasoning(index, last_user, thinking) == (thinking and not followed)


@given(ROLES)
def test_tool_traffic_never_moves_the_last_user(roles: list[str]) -> None:
    assert last_user_index([*roles, "assistant", "tool", "tool"]) == last_user_index(roles)
    assert last_user_index([*roles, "user"]) == len(roles)


def test_without_a_user_message_everything_is_kept() -> None:
    last_user = last_user_index(["system", "assistant", "tool"])
    assert last_user == -1
    assert keeps_reasoning(1, last_user, thinking=True)
    assert not keeps_reasoning(1, last_user, thinking=False)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0),
        ([Span(0, 9, "stable")], 9),
        ([Span(0, 9, "stable"), Span(9, 12, "reasoning"), Span(12, 20, "tool")], 9),
        ([Span(0, 3, "reasoning"), Span(3, 9, "answer")], 0),
    ],
)
def test_flip_point(spans: list[Span], expected: int) -> None:
    assert flip_point(spans) == expected
