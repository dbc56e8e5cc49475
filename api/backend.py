"""The engine as the routes see it: absent while it loads, then serving, or dead, or replaced."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api.errors import ApiError, engine_is_dead
from api.metrics.metrics import Metrics
from api.response import Model, ModelList
from api.service import ChatService
from api.version import version

LOADING_RETRY_S = 2.0
NEVER_RETRY_S = 30.0
"""Where no other engine is started: somebody has to start the server again."""


class Backend:
    """One model under its names. `service` appears when the engine has loaded it."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.created_s = int(time.time())
        self.service: ChatService | None = None
        self.metrics = Metrics(names[0], draining=lambda: self.draining)
        self.draining = False
        """The server is about to stop: what runs may finish, nothing new should be sent here."""
        self.show_metrics: Callable[[Request], Awaitable[Response]] | None = None
        """The endpoint of metrics, where others count, too; None: these metrics are all."""
        self.supervised = False
        """Another engine takes the place of one that dies."""

    @property
    def death(self) -> str | None:
        """Why the engine is gone, None while it loads or lives."""
        return self.service.engine.death if self.service is not None else None

    @property
    def alive(self) -> bool:
        """Whether an engine answers."""
        return self.service is not None and self.death is None

    @property
    def lost(self) -> bool:
        """Whether no engine answers, and none ever will."""
        return self.death is not None and not self.supervised

    def answer_with(self, service: ChatService) -> None:
        """Answers from now on with another engine's service, which is told what was remembered."""
        if self.service is not None:
            new, old = service.conversations, self.service.conversations
            new.store, new.summaries, new.counts = old.store, old.summaries, old.counts
        self.service = service

    def require(self) -> ChatService:
        """Returns the service; raises ApiError(503) while there is none."""
        if self.service is None:
            raise ApiError(
                503, "The model is loading.", code="loading", retry_after=LOADING_RETRY_S
            )
        if self.death is not None:
            raise self._dead()
        return self.service

    def _dead(self) -> ApiError:
        if not self.supervised:
            return engine_is_dead(self.death, retry_after_s=NEVER_RETRY_S)
        return ApiError(
            503,
            f"The engine died: {self.death}. Another one is loading the model.",
            code="engine_dead",
            retry_after=LOADING_RETRY_S,
        )

    def models(self) -> ModelList:
        """Returns every name of the model, the main one first."""
        window = self.require().facts.max_model_len
        return ModelList(
            data=[
                Model(id=name, created=self.created_s, root=self.names[0], max_model_len=window)
                for name in self.names
            ]
        )

    def model(self, name: str) -> Model:
        """Returns one model; raises ApiError(404) for another name."""
        for model in self.models().data:
            if model.id == name:
                return model
        raise ApiError(
            404, f"The model {name!r} does not exist.", param="model", code="model_not_found"
        )

    def info(self) -> dict[str, Any]:
        """Returns what is served, the memory equation in bytes, and the last engine snapshot."""
        service = self.require()
        engine = service.engine
        ready = msgspec.to_builtins(engine.ready)
        memory = ready.pop("memory")
        ready.pop("type", None)
        return {
            "version": version(),
            "model": self.names[0],
            **ready,
            "memory_bytes": memory,
            "conversations": service.conversations.info(),
            "snapshot": None
            if engine.snapshot is None
            else {
                key: value
                for key, value in msgspec.to_builtins(engine.snapshot).items()
                if key != "type"
            },
        }
