"""What the scripted model says. A client's test writes it down beside the request that asks for it:
the model plays the steps in the last user message, one per answer of the turn.

    play(step("Let me see.", call("weather", city="Paris"), think="Which city?"), step("It is $0."))

Standard library only: the server and every client's environment import it.
"""

from __future__ import annotations

import json
import re
from typing import Any

START = "Play: "
_RESULTS = re.compile(r"<function_results>(.*?)</function_results>", re.DOTALL)
_RESULT = re.compile(r"<result>(.*?)</result>", re.DOTALL)


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """Returns a tool call of a step."""
    return {"name": name, "arguments": arguments}


def step(say: str = "", *calls: dict[str, Any], think: str = "") -> dict[str, Any]:
    """Returns one answer. `$0`, `$1`, … in it are the results of the calls before, in the order in
    which the model sees them. It thinks in thinking mode only."""
    return {"say": say, "calls": list(calls), "think": think}


def play(*steps: dict[str, Any]) -> str:
    """Returns the user message that makes the model answer so."""
    return START + json.dumps(steps, ensure_ascii=False)


def step_for(prompt: str) -> dict[str, Any]:
    """Returns the step that answers a rendered prompt, the last one again when all are played."""
    _, found, turn = prompt.rpartition(START)
    if not found:
        return step("Hello!")
    steps, _ = json.JSONDecoder().raw_decode(turn)
    answered = _RESULTS.findall(turn)
    wanted: dict[str, Any] = steps[min(len(answered), len(steps) - 1)]
    results = _RESULT.findall(answered[-1]) if answered else []
    say = re.sub(r"\$(\d)", lambda place: results[int(place[1])], wanted["say"])
    return wanted | {"say": say}
