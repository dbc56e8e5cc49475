"""Steps as the engine reports them, added up: times, tokens, what these cost and should cost."""

from __future__ import annotations

from api.metrics import names
from api.metrics.cost import Costs
from api.metrics.values import Histogram, Number, Values
from cost_model.model import PHASES
from engine.messages import Steps, StepStats


class _Phase:
    """What is counted of prefill and of decode alike."""

    def __init__(self, values: Values, phase: str) -> None:
        self.seconds: Histogram = values.histogram(names.STEP_SECONDS, phase)
        self.predicted: Number = values.number(names.STEP_PREDICTED, phase)
        self.error: Histogram = values.histogram(names.STEP_ERROR, phase)
        self.computed: Number = values.number(names.TOKENS, phase, "computed")
        self.context: Number = values.number(names.CONTEXT_TOKENS, phase)
        self.selected: Number = values.number(names.SELECTED_TOKENS, phase)
        self.gpu_seconds: Number = values.number(names.GPU_SECONDS, phase)
        self.expected: Number = values.number(names.EXPECTED_COST, phase)


class StepCounts:
    """Takes the engine's messages in, a few times a second."""

    def __init__(self, values: Values, costs: Costs, gpus: int = 1) -> None:
        """gpus: devices that work on a step."""
        self._costs, self._gpus = costs, gpus
        self._prefill, self._decode = (_Phase(values, phase) for phase in PHASES)
        self._cached = values.number(names.TOKENS, "prefill", "cached")
        self._pre_warmed = values.number(names.TOKENS, "prefill", "pre_warmed")
        self._first = values.number(names.FIRST_TOKENS)
        self._overhead = values.number(names.STEP_OVERHEAD)
        self._size = values.histogram(names.STEP_SIZE)
        self._gaps = values.histogram(names.INTER_TOKEN)
        self._waits = values.histogram(names.QUEUE_SECONDS)
        self._linear, self._core, self._indexer = (
            values.number(names.MODEL_FLOPS, component) for component in names.FLOP_COMPONENTS
        )

    def take(self, message: Steps) -> None:
        """Adds up what ran since the message before."""
        for step in message.steps:
            self._step(step)

    def _step(self, step: StepStats) -> None:
        phase = self._prefill if step.prefills else self._decode
        phase.seconds.observe(step.seconds)
        if step.predicted_s > 0 and step.seconds > 0:
            phase.predicted.add(step.predicted_s)
            phase.error.observe(abs(step.predicted_s - step.seconds) / step.seconds)
        self._overhead.add(step.overhead_s)
        prefilled = sum(count for _, count, _ in step.prefills)
        self._size.observe(prefilled + step.decode_rows)
        self._prefill.computed.add(prefilled - step.pre_warmed_tokens)
        self._pre_warmed.add(step.pre_warmed_tokens)
        self._decode.computed.add(step.decode_rows)
        self._decode.context.add(step.decode_context_tokens)
        self._decode.selected.add(step.decode_selected_tokens)
        visible, attended = self._costs.prefill_context(step)
        self._prefill.context.add(visible)
        self._prefill.selected.add(attended)
        self._cached.add(sum(cached for _, cached in step.prompts))
        self._first.add(step.first_tokens)
        for seconds, tokens in step.gaps:
            self._gaps.observe(seconds, tokens)
        for seconds in step.waits_s:
            self._waits.observe(seconds)
        self._price(step)

    def _price(self, step: StepStats) -> None:
        costs = self._costs
        flops = costs.flops(step)
        self._linear.add(flops.linear)
        self._core.add(flops.core)
        self._indexer.add(flops.indexer)
        prefill_s, decode_s = costs.expected_seconds(step)
        self._prefill.expected.add(costs.dollars(prefill_s))
        self._decode.expected.add(costs.dollars(decode_s))
        gpu_seconds = (step.seconds + step.overhead_s) * self._gpus
        share = prefill_s / (prefill_s + decode_s) if step.prefills else 0.0
        self._prefill.gpu_seconds.add(gpu_seconds * share)
        self._decode.gpu_seconds.add(gpu_seconds * (1 - share))
