"""Preset `measured`: operator times from a file, and the roofline for what the file leaves out.

A table of operator times is one JSON object. Times are GPU-seconds of ONE token in all layers of
the model together (so divide what a kernel takes by its tokens, and add up the layers):

    {
      "format": "winnow operator times",
      "version": 1,
      "machine": "8 x H800 SXM, EP32, DeepGEMM and FlashMLA",
      "date": "2026-11-22",
      "versions": {"winnow": "0.1.0", "torch": "2.13.0"},
      "model": "v3.2",
      "fallback_machine": "h800",
      "batch": 128,
      "step_seconds": 0.0004,
      "prefill": {
        "attention_projections": {"context_tokens": [0], "seconds": [2.4e-05]},
        "core_attention.masked_mha": {"context_tokens": [0, 8192], "seconds": [0, 7.5e-05]},
        "core_attention.mqa": {"context_tokens": [0, 2048, 131072], "seconds": [0, 6e-05, 6e-05]}
      },
      "decode": {
        "indexer": {"context_tokens": [0, 65536, 131072], "seconds": [0, 9.5e-05, 0.00019]}
      }
    }

`machine`, `date` and `versions` say what was measured, in words. `model` is a name ("v3.1", "v3.2")
or an object with the fields of `ModelShape`. `batch` (default 128) is the decoded tokens per GPU
and step of the measurement. `step_seconds` is what a step takes beside its tokens, on machines
where launching and scheduling show; such time must not be in the operators as well.

Points: `context_tokens` ascends. Between two points time is linear; beyond the last one it goes on
with the last slope, or stays level if that one falls; before the first it is that of the first. So
one point is a constant.

Components are those of the roofline's breakdown, and `communication` and `other` for time that
belongs to none of them. A component that the roofline has and the table lacks is taken from the
roofline of `fallback_machine`, and listed in `Measured.fallbacks`.

Forms: `core_attention` holds for every attention form, `core_attention.<form>` for that one. Where
a phase has core attention measured in some forms only, just those are considered: a comparison of
a measured form with an estimated one would mostly compare the measurement with the estimate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from cost_model.errors import CostError
from cost_model.machines import machine_named
from cost_model.model import PHASES, Breakdown, Phase, cheapest, forms_of, require_phase
from cost_model.roofline import Roofline, RooflineChoices
from cost_model.shape import SHAPES, ModelShape
from cost_model.work import FORMS, LINEAR, FloatArray, Form, as_positions

FORMAT = "winnow operator times"
VERSION = 1

OF_INDEXER = ("indexer_projections", "indexer", "top_k")
"""Components of a model with an indexer only."""
COMPONENTS = (*LINEAR, "core_attention", "indexer", "top_k", "communication", "other")
"""What a table may time; see `cost_model.work` for the forms after `core_attention.`."""
DECODE_FORMS: tuple[Form, ...] = ("mqa", "dense_mqa")


class Points(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of one token at each number of context tokens; raises CostError when malformed."""

    context_tokens: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.context_tokens:
            raise CostError("context_tokens is empty; allowed: at least one point")
        if len(self.seconds) != len(self.context_tokens):
            raise CostError(
                f"seconds has length {len(self.seconds)}; "
                f"allowed: {len(self.context_tokens)}, that of context_tokens"
            )
        for name in ("context_tokens", "seconds"):
            for value in getattr(self, name):
                if not (np.isfinite(value) and value >= 0):
                    raise CostError(f"{name} has {value:g}; allowed: 0 and above, finite")
        if np.any(np.diff(self.context_tokens) <= 0):
            raise CostError(f"context_tokens is {list(self.context_tokens)}; allowed: ascending")

    def at(self, positions: FloatArray) -> FloatArray:
        """Seconds at each position: linear between the points, with the last slope beyond them."""
        known, seconds = self.context_tokens, self.seconds
        inside = np.asarray(np.interp(positions, known, seconds))
        if len(known) == 1:
            return inside
        slope = max((seconds[-1] - seconds[-2]) / (known[-1] - known[-2]), 0.0)
        return inside + slope * np.maximum(positions - known[-1], 0.0)


class OperatorTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a table; the module's docstring says what each field means."""

    format: str
    version: int
    machine: str
    date: str
    versions: dict[str, str]
    model: str | dict[str, Any]
    fallback_machine: str = "cpu"
    batch: Annotated[int, msgspec.Meta(ge=1)] = 128
    step_seconds: float = 0.0
    prefill: dict[str, Points] = {}
    decode: dict[str, Points] = {}

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise CostError(f"format is {self.format!r}; allowed: {FORMAT!r}")
        if self.version != VERSION:
            raise CostError(f"version is {self.version}; allowed: {VERSION}")
        if not (np.isfinite(self.step_seconds) and self.step_seconds >= 0):
            raise CostError(f"step_seconds is {self.step_seconds:g}; allowed: 0 and above, finite")
        try:
            machine_named(self.fallback_machine)
        except CostError as error:
            raise CostError(f"fallback_machine: {error}") from None
        shape = self.shape
        for phase in PHASES:
            for name in self.of_phase(phase):
                _require_component(phase, name, shape)

    @property
    def shape(self) -> ModelShape:
        """The model that was measured."""
        if isinstance(self.model, dict):
            unknown = sorted(set(self.model) - set(ModelShape.__struct_fields__))
            if unknown:
                raise CostError(
                    f"model has {unknown[0]!r}; allowed: {', '.join(ModelShape.__struct_fields__)}"
                )
            try:
                return msgspec.convert(self.model, ModelShape)
            except msgspec.ValidationError as error:
                raise CostError(f"model: {error}") from None
        if self.model not in SHAPES:
            raise CostError(
                f"model is {self.model!r}; allowed: {', '.join(SHAPES)}, or the fields of a shape"
            )
        return SHAPES[self.model]

    def of_phase(self, phase: Phase) -> dict[str, Points]:
        """The tables of one phase, by component (and form)."""
        return self.prefill if phase == "prefill" else self.decode


class Measured(msgspec.Struct, frozen=True):
    """The machine and the model that a table of operator times was measured on."""

    times: OperatorTimes

    @property
    def preset(self) -> str:
        return "measured"

    @property
    def shape(self) -> ModelShape:
        return self.times.shape

    @property
    def step_seconds(self) -> float:
        return self.times.step_seconds

    @property
    def step_share_seconds(self) -> float:
        return self.times.step_seconds / self.times.batch

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """ "phase.component" of everything that is estimated, because the table lacks it."""
        missing = []
        for phase in PHASES:
            form = self.forms(phase)[0]
            estimated = self._estimate(phase, np.zeros(1), form)
            missing += [
                f"{phase}.{name}" for name in estimated if self._points(phase, name, form) is None
            ]
        return tuple(missing)

    def forms(self, phase: Phase) -> tuple[Form, ...]:
        """The exact forms that core attention was measured in; all exact ones, if in none."""
        exact, timed = forms_of(self.shape, phase), self._timed_forms(phase)
        return tuple(form for form in exact if form in timed) or exact

    def seconds(self, phase: Phase, positions: ArrayLike, form: Form | None = None) -> Breakdown:
        """GPU-seconds of one token by component, measured where the table has it.

        Raises CostError for a `form` of core attention that the table lacks while it has another.
        """
        require_phase(phase)
        values = as_positions(positions)
        forms = self.forms(phase)
        if form is not None:
            timed = self._timed_forms(phase)
            if timed and form not in timed:
                raise CostError(f"form is {form!r}; the table's {phase} has: {', '.join(timed)}")
            forms = (form,)
        return cheapest([self._seconds_in(phase, values, one) for one in forms])

    def _seconds_in(self, phase: Phase, positions: FloatArray, form: Form) -> Breakdown:
        estimated = self._estimate(phase, positions, form)
        selects = self.shape.sparse and form in ("masked_mha", "mqa")
        measured = {name.partition(".")[0]: name for name in self.times.of_phase(phase)}
        parts = {}
        for name in dict.fromkeys((*estimated, *measured)):
            if name in ("indexer", "top_k") and not selects:
                continue
            points = self._points(phase, name, form)
            parts[name] = estimated[name] if points is None else points.at(positions)
        return parts

    def _points(self, phase: Phase, name: str, form: Form) -> Points | None:
        table = self.times.of_phase(phase)
        return table.get(f"{name}.{form}", table.get(name))

    def _timed_forms(self, phase: Phase) -> tuple[Form, ...]:
        """Forms that core attention was measured in; none: it was not measured at all."""
        return tuple(form for form in FORMS if self._points(phase, "core_attention", form))

    def _estimate(self, phase: Phase, positions: FloatArray, form: Form) -> Breakdown:
        machine = machine_named(self.times.fallback_machine)
        choices = RooflineChoices(batch=self.times.batch)
        return Roofline(self.shape, machine, choices).seconds(phase, positions, form)


def load_operator_times(path: str | Path) -> OperatorTimes:
    """The table in a JSON file; raises CostError naming the file, the field and what is allowed."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise CostError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CostError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CostError(f"{path}: a JSON object was expected")
    # Converted one by one, because msgspec does not name the key of a dictionary in its errors.
    field = ""
    try:
        for phase in PHASES:
            table = content.get(phase, {})
            if not isinstance(table, dict):
                raise CostError(f"{phase} is {table!r}; allowed: an object of components")
            for name, points in table.items():
                field = f"{phase}.{name}: "
                table[name] = msgspec.convert(points, Points)
        field = ""
        return msgspec.convert(content, OperatorTimes)
    except (CostError, msgspec.ValidationError) as error:
        raise CostError(f"{path}: {field}{error}") from None


def _require_component(phase: Phase, name: str, shape: ModelShape) -> None:
    """Raises CostError unless a table for `shape` may time `name` in `phase`."""
    component, dot, form = name.partition(".")
    allowed = [one for one in COMPONENTS if shape.sparse or one not in OF_INDEXER]
    if component not in allowed or (dot and component != "core_attention"):
        raise CostError(
            f"{phase}.{name} is not a component; allowed: {', '.join(allowed)}, "
            "and core_attention.<form>"
        )
    forms = FORMS if phase == "prefill" else DECODE_FORMS
    if dot and form not in forms:
        raise CostError(f"{phase}.{name} has no such form; allowed: {', '.join(forms)}")
