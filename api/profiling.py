"""A profile of the engine's next steps, on demand; the route exists only where it is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from fastapi import FastAPI, Request
from fastapi.params import Depends
from starlette.responses import Response

from api.backend import Backend
from api.errors import ApiError, engine_is_dead, invalid
from api.exchange import JsonResponse, unless_disconnected
from api.openapi import answers
from engine.client import ConfigError, EngineDead

PATH = "/debug/profile"
MOST_STEPS = 1000
"""A step's events are a few hundred kilobytes."""


class ProfileWritten(msgspec.Struct, frozen=True):
    """A Chrome trace, as Perfetto and chrome://tracing read it, on the server's disk."""

    file: str
    steps: int


def add_profiler(app: FastAPI, backend: Backend, folder: Path, keyed: Sequence[Depends]) -> None:
    """Adds the route. Raises ConfigError when `folder` is none."""
    if not folder.is_dir():
        raise ConfigError(f"--profile-dir is {folder}; it must be an existing folder")

    @app.post(PATH, dependencies=keyed)
    @answers(ProfileWritten)
    async def profile(request: Request) -> Response:
        """Profiles the next `steps` steps (10); answers once they ran and the file is written."""
        engine = backend.require().engine
        steps = _steps(request.query_params.get("steps", "10"))
        name = time.strftime("steps-%Y%m%dT%H%M%SZ.json.gz", time.gmtime())
        work = engine.profile(steps, str(folder.resolve() / name))
        try:
            done = await unless_disconnected(request, work)
        except EngineDead as error:
            raise engine_is_dead(error) from error
        except ValueError as error:
            raise ApiError(409, f"{error}.".capitalize(), code="profile_running") from error
        if done.error is not None:
            raise ApiError(500, f"No profile was written: {done.error}.", code="profile_failed")
        return JsonResponse(ProfileWritten(done.file, done.steps))


def _steps(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STEPS:
        raise invalid(f"steps is {text!r}; it must be in [1, {MOST_STEPS}].", "steps")
    return int(text)
