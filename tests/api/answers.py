"""A service whose model is a tiny random network: only what it is made to say is right."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from api.chat.encoding import Encoder
from engine.core import EngineCore
from engine.grammar import GrammarCompiler
from engine.intake import Intake
from engine.messages import FromEngine, Outputs, Refused, Shutdown, Submit, ToEngine
from tests.api.scripted_engine import Scripted
from tests.checkpoints import write_tokenizer
from tests.engine.replica import FIELDS, TinyReplica


class RandomModel:
    """The engine without its process: the step loop runs a request to its end, at once."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        write_tokenizer(folder)
        self.replica = TinyReplica(**{"total_pages": 128, **limits})
        self.compiler = GrammarCompiler(folder, FIELDS["vocab_size"], (1,))
        self.sent: list[FromEngine] = []

    def run(self, *messages: ToEngine) -> dict[tuple[str, int], list[int]]:
        """Returns the tokens of every choice, the end token included."""
        inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        intake = Intake(self.replica.scheduler, inbox, self.compiler)
        open_choices = {(m.id, c) for m in messages if isinstance(m, Submit) for c in range(m.n)}
        tokens: dict[tuple[str, int], list[int]] = {name: [] for name in open_choices}
        self.sent = []

        def send(message: FromEngine) -> None:
            self.sent.append(message)
            if isinstance(message, Refused):
                open_choices.difference_update({c for c in open_choices if c[0] == message.id})
            elif isinstance(message, Outputs):
                for output in message.outputs:
                    tokens[output.id, output.choice] += output.token_ids
                    if output.finish is not None:
                        open_choices.remove((output.id, output.choice))
            if not open_choices:
                inbox.put(Shutdown())

        for message in messages:
            intake.take(message)
        EngineCore(self.replica.scheduler, self.replica.runner, inbox, send).run()
        intake.close()
        return tokens

    @property
    def finishes(self) -> dict[tuple[str, int], str]:
        """How the choices of the last run ended."""
        return {
            (output.id, output.choice): output.finish
            for message in self.sent
            if isinstance(message, Outputs)
            for output in message.outputs
            if output.finish is not None
        }


class Answers(Scripted):
    """Chat completions from a random model, through everything but the sockets."""

    def __init__(self, encoder: Encoder, model: RandomModel) -> None:
        super().__init__(encoder)
        self.model = model
        self._said: dict[str, dict[tuple[str, int], list[int]]] = {}
        self.engine.script = self._script

    def _script(self, submit: Submit, choice: int) -> list[int]:
        if submit.id not in self._said:
            self._said[submit.id] = self.model.run(submit)
        return self._said[submit.id][submit.id, choice]

    async def answer(self, **fields: Any) -> Any:
        """Returns the one choice of an answer as a client sees it."""
        fields = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 700} | fields
        (choice,) = (await self.complete(**fields))["choices"]
        return choice


def tool(name: str, properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    """A function tool."""
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    parameters |= {"required": list(required), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def arguments_of(call: dict[str, Any]) -> Any:
    """Returns the arguments of a call in an answer."""
    return msgspec.json.decode(call["function"]["arguments"])
