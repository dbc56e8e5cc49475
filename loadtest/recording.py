"""Decisions written down, and made again.

A recording holds what a scheduler was asked and what it decided, in order: its configuration, every
request and every ended turn, every plan with the result that its step had. A replay asks a new
scheduler the same and compares each answer; with the same code they are identical.

One JSON object per line, gzipped when the name ends in .gz. Prompts are written as runs of equal
tokens; a plan's new slots without their tokens, which follow from the requests.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from cost_model.predictor import StepCoefficients, StepPredictor
from loadtest.tokens import Run, token_ids
from scheduler.config import SchedulerConfig
from scheduler.outcome import Choice, Refusal
from scheduler.plan import StepPlan, StepResult
from scheduler.request import Sampling
from scheduler.scheduler import Scheduler
from scheduler.turns import Why

VERSION = 1


class RecordingError(ValueError):
    """A recording that cannot be read; the message names the file and the line."""


class _Header(msgspec.Struct, frozen=True, tag="decisions"):
    version: int
    config: SchedulerConfig
    coefficients: StepCoefficients
    top_k: int


class _Submit(msgspec.Struct, frozen=True, tag="submit"):
    id: str
    prompt: tuple[Run, ...]
    sampling: Sampling
    tenant: str
    priority: int
    answer: int | str
    """Cached tokens, or the code of the refusal."""


class _TurnEnded(msgspec.Struct, frozen=True, tag="turn_ended"):
    id: str
    why: Why
    flip_token: int | None
    next_prefix: tuple[Run, ...] | None
    now_s: float


class _Abort(msgspec.Struct, frozen=True, tag="abort"):
    id: str


class _Step(msgspec.Struct, frozen=True, tag="step"):
    step: int
    now_s: float
    rows: list[tuple[int, int, int, str, str]]
    """(slot, start, count, sample, form)."""
    new_slots: list[tuple[int, str, int, int, list[int]]]
    """(slot, request, choice, known tokens, pages)."""
    new_pages: list[tuple[int, list[int]]]
    forget: list[int]
    token_ids: list[int]
    seconds: float


_Line = _Header | _Submit | _TurnEnded | _Abort | _Step


class Recorder:
    """A scheduler whose answers are written to a file as they are given; close it in the end."""

    def __init__(self, scheduler: Scheduler, predictor: StepPredictor, path: Path) -> None:
        self._scheduler = scheduler
        self._file = _open(path, "wb")
        self._encode = msgspec.json.Encoder().encode
        self._plan: tuple[StepPlan, float] | None = None
        header = _Header(VERSION, scheduler.config, predictor.coefficients, predictor.top_k)
        self._write(header)

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()

    def submit(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        *,
        tenant: str = "",
        priority: int = 0,
    ) -> int | Refusal:
        """As Scheduler.submit."""
        answer = self._scheduler.submit(
            request_id, token_ids, sampling, tenant=tenant, priority=priority
        )
        told = answer if isinstance(answer, int) else answer.code
        prompt = runs_of(token_ids)
        self._write(_Submit(request_id, prompt, sampling, tenant, priority, told))
        return answer

    def turn_ended(
        self,
        request_id: str,
        choice: int,
        why: Why,
        flip_token: int | None,
        *,
        next_prefix: list[int] | None = None,
        now_s: float = 0.0,
    ) -> None:
        """As Scheduler.turn_ended; of a request's first choice."""
        self._scheduler.turn_ended(
            request_id, choice, why, flip_token, next_prefix=next_prefix, now_s=now_s
        )
        form = None if next_prefix is None else runs_of(next_prefix)
        self._write(_TurnEnded(request_id, why, flip_token, form, now_s))

    def abort(self, request_id: str) -> list[Choice]:
        """As Scheduler.abort."""
        self._write(_Abort(request_id))
        return self._scheduler.abort(request_id)

    def plan(self, now_s: float = 0.0) -> StepPlan:
        """As Scheduler.plan."""
        plan = self._scheduler.plan(now_s)
        self._plan = plan, now_s
        return plan

    def commit(self, result: StepResult) -> list[Choice]:
        """As Scheduler.commit."""
        assert self._plan is not None
        self._write(_step(*self._plan, result))
        return self._scheduler.commit(result)

    def _write(self, line: _Line) -> None:
        self._file.write(self._encode(line) + b"\n")


class Replayed(msgspec.Struct, frozen=True):
    """What came of a replay."""

    requests: int
    steps: int
    difference: str | None
    """The first decision that was made differently; None: none was."""


def replay(path: Path) -> Replayed:
    """Makes a recording's decisions again, up to the first that differs.

    Raises RecordingError for a file that is no recording of this version.
    """
    lines = _read(path)
    header = next(lines, None)
    if not isinstance(header, _Header) or header.version != VERSION:
        raise RecordingError(f"{path}:1: no recording of version {VERSION}")
    scheduler = Scheduler(header.config, StepPredictor(header.coefficients, header.top_k))
    requests = steps = 0
    for number, line in enumerate(lines, 2):
        found: object
        match line:
            case _Submit():
                requests += 1
                answer = scheduler.submit(
                    line.id,
                    token_ids(line.prompt),
                    line.sampling,
                    tenant=line.tenant,
                    priority=line.priority,
                )
                found = answer if isinstance(answer, int) else answer.code
                if found != line.answer:
                    what = f"request {line.id}: {found} now, {line.answer} then"
                    return Replayed(requests, steps, f"{path}:{number}: {what}")
            case _TurnEnded():
                form = None if line.next_prefix is None else token_ids(line.next_prefix)
                scheduler.turn_ended(
                    line.id, 0, line.why, line.flip_token, next_prefix=form, now_s=line.now_s
                )
            case _Abort():
                scheduler.abort(line.id)
            case _Step():
                result = StepResult(
                    line.step, line.token_ids, [None] * len(line.token_ids), line.seconds
                )
                again = _step(scheduler.plan(line.now_s), line.now_s, result)
                if again != line:
                    what = f"step {line.step}: {_difference(again, line)}"
                    return Replayed(requests, steps, f"{path}:{number}: {what}")
                scheduler.commit(result)
                steps += 1
            case _Header():
                raise RecordingError(f"{path}:{number}: a second header")
    return Replayed(requests, steps, None)


def runs_of(ids: Sequence[int]) -> tuple[Run, ...]:
    """Returns token ids as runs of equal ones."""
    if not ids:
        return ()
    values = np.asarray(ids, dtype=np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1))
    counts = np.diff(np.concatenate((starts, [len(values)])))
    return tuple(zip(values[starts].tolist(), counts.tolist(), strict=True))


def _step(plan: StepPlan, now_s: float, result: StepResult) -> _Step:
    prepare = plan.prepare
    return _Step(
        plan.step,
        now_s,
        [(row.slot, row.start, row.count, row.sample, row.form) for row in plan.rows],
        [
            (new.slot, new.request_id, new.choice, len(new.token_ids), new.pages)
            for new in prepare.new_slots
        ],
        [(slot, list(pages)) for slot, pages in prepare.new_pages],
        list(plan.forget),
        result.token_ids,
        result.seconds,
    )


def _difference(now: _Step, then: _Step) -> str:
    """The first field, and the first of its elements, that differs."""
    for name in now.__struct_fields__:
        mine, theirs = getattr(now, name), getattr(then, name)
        if mine == theirs:
            continue
        if not isinstance(mine, list) or len(mine) != len(theirs):
            size = f"{len(mine)} now, {len(theirs)} then" if isinstance(mine, list) else ""
            return f"{name}: {size or f'{mine} now, {theirs} then'}"
        place = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
        return f"{name}[{place}]: {mine[place]} now, {theirs[place]} then"
    return "nothing differs"


def _open(path: Path, mode: str) -> BufferedIOBase:
    if path.suffix == ".gz":
        return cast(BufferedIOBase, gzip.open(path, mode, compresslevel=1))
    return cast(BufferedIOBase, path.open(mode))


def _read(path: Path) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    number = 1
    try:
        with _open(path, "rb") as file:
            for line in file:
                yield decode(line)
                number += 1
    except msgspec.MsgspecError as error:
        raise RecordingError(f"{path}:{number}: {error}") from None
    except (OSError, EOFError) as error:
        raise RecordingError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
