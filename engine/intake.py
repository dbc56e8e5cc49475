"""Messages on their way from the socket to the step loop: what takes time is done here.

Prompts are hashed on the thread that reads the socket, grammars are compiled on one of their own,
so that neither holds up a step, and a slow grammar holds up nobody's messages but its request's.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import msgspec

from engine.grammar import CompiledGrammar, GrammarCompiler, GrammarError, reason_of
from engine.messages import Abort, Stop, Submit, ToEngine
from scheduler.scheduler import Scheduler


class ReadySubmit(Submit, frozen=True, tag=True, omit_defaults=True):
    """A Submit with what was worked out before it reached the loop; it never travels."""

    keys: list[bytes] = []
    """The prompt's page identities."""
    compiled: CompiledGrammar | None = None
    grammar_error: str | None = None
    """Why its grammar could not be compiled."""


class Intake:
    """Makes messages ready and puts them into the loop's inbox, those of one request in order."""

    def __init__(
        self,
        scheduler: Scheduler,
        inbox: SimpleQueue[ToEngine | None],
        compiler: GrammarCompiler | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._inbox = inbox
        self._compiler = compiler
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._lock = threading.Lock()
        self._behind: dict[str, list[ToEngine]] = {}
        """Messages that came for a request while its grammar is compiled."""

    def take(self, message: ToEngine) -> None:
        """Takes a message as it was read; it reaches the inbox now, or behind its grammar."""
        if isinstance(message, Submit) and message.grammar is not None:
            with self._lock:
                self._behind[message.id] = []
            self._thread.submit(self._compile, message)
            return
        if isinstance(message, Stop | Abort):
            with self._lock:
                if (behind := self._behind.get(message.id)) is not None:
                    behind.append(message)
                    return
        self._inbox.put(self._ready(message) if isinstance(message, Submit) else message)

    def close(self) -> None:
        """The API side has gone: the loop ends, and what still waits is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._inbox.put(None)

    def _compile(self, message: Submit) -> None:
        compiled, error = None, None
        with self._lock:
            left = any(isinstance(waiting, Abort) for waiting in self._behind[message.id])
        try:
            if left:
                # Clients that come and go must not keep the compiler from the others.
                raise GrammarError("the request was aborted")
            if self._compiler is None or message.grammar is None:
                raise GrammarError("this engine follows no grammars")
            compiled = self._compiler.compile(message.grammar)
        except GrammarError as reason:
            error = str(reason)
        except BaseException as failure:
            # Whatever else it was, it concerns one request, which must hear of it.
            error = reason_of(failure)
        ready = self._ready(message, compiled, error)
        with self._lock:
            self._inbox.put(ready)
            for waiting in self._behind.pop(message.id):
                self._inbox.put(waiting)

    def _ready(
        self,
        message: Submit,
        compiled: CompiledGrammar | None = None,
        grammar_error: str | None = None,
    ) -> ReadySubmit:
        keys = self._scheduler.prompt_keys(message.token_ids, message.tenant, message.cache_salt)
        return ReadySubmit(
            **msgspec.structs.asdict(message),
            keys=keys,
            compiled=compiled,
            grammar_error=grammar_error,
        )
