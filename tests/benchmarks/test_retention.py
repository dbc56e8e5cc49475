from __future__ import annotations

import msgspec
import pytest

from benchmarks.retention import THIRD, Answer, show
from cost_model.machines import MACHINES
from cost_model.shape import V32
from loadtest.conversations import ConversationShape
from loadtest.replica import Settings
from loadtest.studies import POLICIES, Group, Run, Stream, agents_run, overload_run

GROUP = Group(shape=V32, machine=MACHINES["h200"], gpus=8, seed=3, warm_up_s=0.0, until_s=30.0)
SHORT = ConversationShape(
    turns=(2, 2),
    tool_steps=(0, 1),
    reasoning_tokens=(5, 20),
    call_tokens=(5, 20),
    answer_tokens=(5, 20),
    tool_result_tokens=(100, 300),
    think_median_s=2.0,
)
AGAIN_TOKENS = {"plain LRU": 100.0, "no pre-warm": 70.0, "retention": 55.0}
WAIT_S = {"plain LRU": 9.0, "no pre-warm": 4.0, "retention": 1.0}


def test_ratios_are_those_at_a_third_and_at_the_highest_load(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = agents_run(GROUP, SHORT, 2, "no pre-warm")
    user = run.report.first_token_s["user"]

    def at(policy: str, share: float, factor: float) -> Run:
        found = msgspec.structs.replace(
            run.report,
            recomputed_tokens=round(factor * AGAIN_TOKENS[policy] * run.report.completed),
            first_token_s={"user": msgspec.structs.replace(user, mean=WAIT_S[policy] * factor)},
        )
        return msgspec.structs.replace(run, policy=policy, cache_share=share, report=found)

    by_share = [
        at(policy, share, 1.0 if share == THIRD else 7.0)
        for share in (0.2, THIRD)
        for policy in reversed(POLICIES)
    ]
    by_share += [at("no pre-warm", 7.0, 1.0), at("retention", 7.0, 0.5)]
    by_share[-2] = msgspec.structs.replace(
        by_share[-2],
        working_set_pages=100.0,
        live_pages=30.0,
        awaited_pages=20.0,
        asked_again_pages=60.0,
    )
    calm = overload_run(GROUP, Stream(output_tokens=(1, 3), seconds=2.0), 0.5, Settings())
    flood = msgspec.structs.replace(
        calm,
        load=3.0,
        report=msgspec.structs.replace(
            calm.report, goodput_tokens_per_s=0.5 * calm.report.goodput_tokens_per_s
        ),
    )
    show(Answer(by_share=by_share, by_agents=[], chat=[], overload=[calm, flood]))
    text = capsys.readouterr().out
    lines = {
        line.split("|")[1].strip(): line.split("|")[2].strip()
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert lines["computed again, of plain LRU: with pre-warm"] == "0.55"
    assert lines["without pre-warm"] == "0.70"
    assert lines["first token of the user's next message, of that without pre-warm"] == "0.25"
    assert lines["with room for all pages"] == "0.12"
    assert lines["goodput at 3x load, of the peak"] == "0.50"
    held = ("answers that run", "turns that wait for a tool", "users who think")
    assert [lines[name] for name in held] == ["0.30", "0.20", "0.10"]
    assert lines["forms that nobody asks for again"] == "0.40"
    wait_s = float(lines["least wait of a turn with a third of the pages, s"])
    assert wait_s == pytest.approx(0.5 * by_share[-2].turn_s, abs=0.05)
