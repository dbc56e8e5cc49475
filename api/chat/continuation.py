"""An answer whose beginning the client wrote: the model goes on where it ends."""

from collections.abc import Sequence

from api.chat.messages import Message, PromptError, is_unicode, lift_inline_reasoning


def split_started(
    messages: Sequence[Message], thinking: bool
) -> tuple[Sequence[Message], Message | None]:
    """Returns the conversation before its last message, and that message, an answer's beginning.

    With content, the reasoning before it is over; without, it is what goes on.

    Raises PromptError, naming `messages[i]`, for a beginning that no prompt can end in: tool calls,
    reasoning in chat mode with nothing after it, text that is not Unicode, no message before it but
    system messages.
    """
    *history, last = messages
    param = f"messages[{len(history)}]"
    if all(message.role == "system" for message in history):
        raise PromptError("There is no message that the prefix could answer.", param)
    if last.tool_calls:
        raise PromptError("A message with tool_calls cannot be continued.", f"{param}.tool_calls")
    for name, text in (("content", last.content), ("reasoning_content", last.reasoning or "")):
        if not is_unicode(text):
            raise PromptError("The text holds an unpaired surrogate.", f"{param}.{name}")
    started = lift_inline_reasoning(last)
    if started.reasoning and not started.content and not thinking:
        raise PromptError(
            "Reasoning can be continued in thinking mode only.", f"{param}.reasoning_content"
        )
    return history, started
