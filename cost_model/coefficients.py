"""From a preset to the coefficients that predict a step's seconds from its sums."""

from __future__ import annotations

from cost_model.model import CostModel, Phase, total
from cost_model.predictor import StepCoefficients

REACH_TOKENS = 1 << 17
"""The window of the model, where the coefficients are exact."""


def step_coefficients(model: CostModel) -> StepCoefficients:
    """Seconds per token, per context token and per selected token of each phase, by `model`.

    They are read off at no context, at half the window and at its end, so they give the preset's
    seconds of a token at position `context` wherever these have the form

        token + context_token * context + selected_token * min(context, top_k)

    That is all of decode in `paper` and `roofline`, and prefill beyond the switch of forms. Below
    the switch, where masked MHA is cheaper, these are too high (V3.2: by a third at most, at
    top-k). Sums count a token into its own context, so a step is priced with every token one
    position later than `costs.step_seconds` does: less than 0.1 % for the 671B models.

    A table of the preset `measured` that is not of this form is met at those three contexts. The
    seconds are GPU-seconds, those of a step when every GPU has rows of its own.
    """
    decode = _coefficients(model, "decode")
    prefill = _coefficients(model, "prefill")
    return StepCoefficients(
        decode_token_s=decode[0],
        decode_context_token_s=decode[1],
        decode_selected_token_s=decode[2],
        prefill_token_s=prefill[0],
        prefill_context_token_s=prefill[1],
        prefill_selected_token_s=prefill[2],
        row_s=0.0,
        step_s=model.step_seconds,
    )


def _coefficients(model: CostModel, phase: Phase) -> tuple[float, float, float]:
    """Per token, per context token, per selected token; none negative."""
    top_k = model.shape.index_topk
    end = max(REACH_TOKENS, 4 * top_k)
    first, half, last = (float(one) for one in total(model.seconds(phase, [0, end // 2, end])))
    if not top_k:
        return first, max((last - first) / end, 0.0), 0.0
    per_context = max((last - half) / (end - end // 2), 0.0)
    per_selected = (last - per_context * end - first) / top_k
    if per_selected < 0:  # a table that grows faster than its context
        return first, max((last - first) / end, 0.0), 0.0
    return first, per_context, per_selected
