"""Stop strings of the request, found in visible content while it streams."""

from collections.abc import Sequence

from api.chat.scanner import Scanner


class StopMatcher:
    """Cuts the content of one choice at the first stop string.

    Feed it visible content only: stop strings apply neither to reasoning nor to tool calls. Flush
    it (:meth:`finish`) when the content ends, so that text held back keeps its place before a call.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self.watches = bool(stops)
        """Whether there is anything to find."""
        self._scanner = Scanner(*stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the content, None so far."""

    def feed(self, text: str) -> str:
        """Returns the text that may be shown now; after a match nothing more ever is."""
        if self.matched is not None:
            return ""
        text = self._held + text
        border, self.matched = self._scanner.scan(text)
        self._held = "" if self.matched is not None else text[border:]
        return text[:border]

    def finish(self) -> str:
        """Returns the text held back: no stop string can come of it any more."""
        held, self._held = self._held, ""
        return held
