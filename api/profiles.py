"""What a checkpoint of the V3.2 family can do, and what it must refuse.

Speciale has V3.2's shape and prompt format, but was trained to reason at length and without tools.

Source: DeepSeek-V3.2 report, section 2.3 ("DeepSeek-V3.2-Speciale").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from api.chat.messages import Message, PromptError
from api.errors import invalid

ProfileName = Literal["v3.2", "speciale"]
ProfileChoice = Literal["auto", "v3.2", "speciale"]


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The abilities that checkpoints of one architecture differ in."""

    name: ProfileName
    thinking: Literal["optional", "always"] = "optional"
    tools: bool = True
    default_max_tokens: int | None = None
    """Of the answer, reasoning included, where neither request nor checkpoint says."""


PROFILES: dict[ProfileName, ModelProfile] = {
    "v3.2": ModelProfile(name="v3.2"),
    "speciale": ModelProfile(
        name="speciale", thinking="always", tools=False, default_max_tokens=128 * 2**10
    ),
}


def choose_profile(choice: ProfileChoice, model: str) -> ModelProfile:
    """Returns the profile that was chosen; `auto` goes by the model's name.

    The weights do not tell: all checkpoints of the family have one architecture.
    """
    if choice != "auto":
        return PROFILES[choice]
    for name in get_args(ProfileName):
        if name != "v3.2" and name in model.lower():
            return PROFILES[name]
    return PROFILES["v3.2"]


def check_thinking(profile: ModelProfile, thinking: bool, param: str) -> None:
    """Changes nothing; raises ApiError(400) naming `param` for a mode the model does not have."""
    if profile.thinking == "always" and not thinking:
        raise invalid(
            f"The model profile {profile.name!r} always thinks; chat mode is not available.",
            param,
            "unsupported_value",
        )


def check_tools(profile: ModelProfile, has_tools: bool, messages: Sequence[Message]) -> None:
    """Changes nothing; raises PromptError for tools and tool calls the model was not made for.

    The error names `tools`, or `messages[i].tool_calls` by the index in `messages`.
    """
    if profile.tools:
        return
    refusal = f"The model profile {profile.name!r} has no tool calls."
    if has_tools:
        raise PromptError(refusal, "tools", "unsupported_value")
    for index, message in enumerate(messages):
        if message.tool_calls:
            raise PromptError(refusal, f"messages[{index}].tool_calls", "unsupported_value")
