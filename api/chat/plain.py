"""Generated text as it is: what the output parser is to an answer without any format."""

from typing import Literal

from api.chat.events import ContentDelta, Event
from api.chat.parser import Ending


class PlainText:
    """Reports all text as content, at once. The surface of OutputParser that a choice uses."""

    held_characters = 0
    incomplete_reasoning = False

    def __init__(self) -> None:
        self._ending: Ending | None = None

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """To be read after :meth:`finish`."""
        return "length" if self._ending == "length" else "stop"

    def feed(self, text: str) -> list[Event]:
        """Returns the text as an event, none for no text."""
        return [ContentDelta(text)] if text else []

    def at_once(self, text: str) -> type[ContentDelta]:
        """Takes text; all is what it seems."""
        return ContentDelta

    def finish(self, reason: Ending) -> list[Event]:
        """Returns nothing: nothing was held back."""
        self._ending = reason
        return []
