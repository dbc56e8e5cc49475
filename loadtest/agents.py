"""Agents that wait for their answers: conversations played, in the forms that prompts take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loadtest.conversations import Conversation, ConversationShape, Turn, conversations
from loadtest.sources import Arrival, Kind, Request, TurnEnd
from loadtest.tokens import NO_THINKING, OPEN_THINKING, Run, TokenIds, text_tokens


class AgentSource:
    """`agents` agents, each in one conversation after the other, until `until_s`.

    Who is refused comes back after the time that the refusal gave. A conversation ends early when
    its next prompt and answer would exceed `window_tokens`.
    """

    def __init__(
        self,
        shape: ConversationShape,
        *,
        agents: int,
        seed: int,
        window_tokens: int,
        until_s: float,
        tenants: int = 1,
        ramp_s: float = 60.0,
    ) -> None:
        self.shape, self.seed = shape, seed
        self.window_tokens, self.until_s, self.ramp_s = window_tokens, until_s, ramp_s
        ids = TokenIds()
        system = (ids.fresh(), max(1, shape.system_tokens))
        self._agents = [
            _Agent(
                number,
                str(number % tenants) if tenants > 1 else "",
                conversations(shape, seed, number),
                system,
                ids,
                window_tokens,
                shape.reasoning_tokens[1] > 0,
            )
            for number in range(agents)
        ]
        self._agent_of: dict[str, _Agent] = {}

    @property
    def requests(self) -> int | None:
        return None

    @property
    def working_set_tokens(self) -> int:
        """Tokens of all open conversations in every form that was computed of them, dropped ones
        too, and the system text once: what plain LRU has to hold to compute nothing again."""
        return self.asked_again_tokens + sum(agent.dropped_tokens for agent in self._agents)

    @property
    def asked_again_tokens(self) -> int:
        """Tokens of all open conversations as they stand, and the system text once."""
        system = self.shape.system_tokens
        return system + sum(agent.open_tokens - system for agent in self._agents)

    def begin(self) -> Iterator[Arrival]:
        """Agents enter one after the other over `ramp_s`."""
        for agent in self._agents:
            yield self._arrival(agent, self.ramp_s * agent.number / len(self._agents))

    def ended(self, request: Request, now_s: float) -> tuple[TurnEnd | None, Sequence[Arrival]]:
        agent = self._agent_of.pop(request.id)
        end, pause_s = agent.said()
        at_s = now_s + pause_s
        return end, () if at_s >= self.until_s else (self._arrival(agent, at_s),)

    def refused(self, request: Request, now_s: float, retry_after_s: float) -> Sequence[Arrival]:
        at_s = now_s + retry_after_s
        return () if at_s >= self.until_s else (Arrival(at_s, request),)

    def _arrival(self, agent: _Agent, at_s: float) -> Arrival:
        request = agent.next_request()
        self._agent_of[request.id] = agent
        return Arrival(at_s, request)


class _Agent:
    """One agent: the text of its conversation in both forms.

    `live` has the reasoning of the turn that runs; `dropped` is the form that the next user message
    makes of it.
    """

    def __init__(
        self,
        number: int,
        tenant: str,
        talks: Iterator[Conversation],
        system: Run,
        ids: TokenIds,
        window_tokens: int,
        thinks: bool,
    ) -> None:
        self.number, self.tenant, self._thinks = number, tenant, thinks
        self._opening: Run = (OPEN_THINKING if thinks else NO_THINKING, 1)
        self._talks, self._system, self._ids = talks, system, ids
        self._window_tokens = window_tokens
        self._serial = 0
        self._live: list[Run] = []
        self._dropped: list[Run] = []
        self._flip_token = 0
        self.open_tokens = 0
        """Of the conversation as it stands."""
        self.dropped_tokens = 0
        """Of its turns with their reasoning, up to the last answer."""
        self._open()

    def next_request(self) -> Request:
        """Returns what the agent's client sends next."""
        step = self._step
        kind: Kind = "tool"
        if step == 0:
            kind = "user" if self._turn_number else "first"
        prompt = (*self._live, self._opening)
        self._serial += 1
        reasoning, said = self._said_tokens()
        output = (self._ids.fresh(), reasoning + said)
        self._output = output
        return Request(
            f"{self.number}.{self._serial}",
            kind,
            self.tenant,
            prompt,
            text_tokens(prompt),
            (output,),
            output[1],
        )

    def said(self) -> tuple[TurnEnd, float]:
        """The output has come: returns how the turn ended, and when the agent goes on."""
        turn, flip_token = self._turn, self._flip_token if self._thinks else None
        token, length = self._output
        _, said = self._said_tokens()
        self._live += [self._opening, (token, length)]
        self._dropped += [(NO_THINKING, 1), (token, said)]
        if self._step < len(turn.steps):
            step = turn.steps[self._step]
            result = (self._ids.fresh(), step.result_tokens)
            self._live.append(result)
            self._dropped.append(result)
            self._step += 1
            self.open_tokens = text_tokens(self._live)
            if self._fits():
                return TurnEnd("tool_calls", flip_token), step.latency_s
            # Too long to go on: for the scheduler it still is a turn that waits for its tool.
            self._open()
            return TurnEnd("tool_calls", flip_token), self._turn.think_s
        end = TurnEnd("answer", flip_token, tuple(self._dropped) if self._thinks else None)
        if self._thinks:
            self.dropped_tokens += text_tokens(self._live) - self._flip_token
        self._live = list(self._dropped)
        self._turn_number += 1
        if self._turn_number < len(self._talk.turns):
            self._begin_turn()
            if self._fits():
                return end, self._turn.think_s
        self._open()
        return end, self._turn.think_s

    @property
    def _turn(self) -> Turn:
        return self._talk.turns[self._turn_number]

    def _open(self) -> None:
        """Begins a conversation, with the history it is met with."""
        self._talk = next(self._talks)
        self.dropped_tokens = 0
        self._live = [self._system]
        self._turn_number = 0
        for turn in self._talk.turns[: self._talk.turns_before]:
            self.dropped_tokens += _turn_tokens(turn) if self._thinks else 0
            self._live.append((self._ids.fresh(), turn.user_tokens))
            for step in turn.steps:
                self._live += [
                    (NO_THINKING, 1),
                    (self._ids.fresh(), step.call_tokens + 1),
                    (self._ids.fresh(), step.result_tokens),
                ]
            self._live += [(NO_THINKING, 1), (self._ids.fresh(), turn.answer_tokens + 1)]
            self._turn_number += 1
        self._dropped = list(self._live)
        self._begin_turn()
        if not self._fits():
            self._live = self._dropped = [self._system]
            self._turn_number = self.dropped_tokens = 0
            self._begin_turn()

    def _begin_turn(self) -> None:
        self._step = 0
        user = (self._ids.fresh(), self._turn.user_tokens)
        self._live.append(user)
        self._dropped = list(self._live)
        self._flip_token = self.open_tokens = text_tokens(self._live)

    def _said_tokens(self) -> tuple[int, int]:
        """Reasoning with its end marker, and a call or an answer with its end of turn."""
        turn = self._turn
        last = self._step == len(turn.steps)
        reasoning = (turn if last else turn.steps[self._step]).reasoning_tokens
        said = turn.answer_tokens if last else turn.steps[self._step].call_tokens
        return reasoning + self._thinks, said + 1

    def _fits(self) -> bool:
        return self.open_tokens + 1 + sum(self._said_tokens()) <= self._window_tokens


def _turn_tokens(turn: Turn) -> int:
    """Tokens after the user's message, with the reasoning and every marker."""
    steps = sum(
        step.reasoning_tokens + step.call_tokens + step.result_tokens + 3 for step in turn.steps
    )
    return steps + turn.reasoning_tokens + turn.answer_tokens + 3
