"""What the API reads of a checkpoint: its names, its prompt format, and what its tokens cost."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from api.chat.encoding import Encoder
from api.config import ChatConfig, ServerConfig
from api.metrics.cost import Costs
from api.metrics.metrics import Metrics
from api.profiles import choose_profile
from api.service import ChatService, load_prompt_format
from cost_model.errors import CostError
from cost_model.shape import ModelShape
from engine.client import (
    CheckpointError,
    EngineClient,
    EngineConfig,
    GenerationDefaults,
    resolve_model,
)
from engine.messages import Ready


class Checkpoint(NamedTuple):
    """One checkpoint as it is served."""

    folder: Path
    names: tuple[str, ...]
    """Names clients may use, the first in answers."""
    encoder: Encoder
    defaults: GenerationDefaults
    chat_config: ChatConfig
    """With the profile that was chosen."""

    def service(self, engine: EngineClient, metrics: Metrics) -> ChatService:
        """Returns what answers with an engine. Raises CheckpointError for a model that the
        tokenizer does not fit."""
        return ChatService(
            engine, self.encoder, self.names, self.defaults, self.chat_config, metrics
        )

    def costs(self, config: EngineConfig, ready: Ready, usd_per_hour: float | None) -> Costs:
        """Returns what the model's tokens cost on an engine. Raises CheckpointError for a
        config.json that says too little."""
        try:
            shape = ModelShape.from_folder(self.folder)
        except CostError as error:
            raise CheckpointError(str(error)) from error
        if config.attention == "dense":
            shape = shape.without_indexer
        return Costs.of(shape, ready.machine, usd_per_hour, ready.max_model_len)


def open_checkpoint(
    engine_config: EngineConfig, config: ServerConfig, chat_config: ChatConfig
) -> Checkpoint:
    """Returns the checkpoint, downloaded first if it has to be. Raises CheckpointError."""
    folder = resolve_model(engine_config.model, engine_config.revision)
    encoder, defaults = load_prompt_format(folder)
    names = config.served_model_name or (model_name(engine_config.model, folder),)
    if chat_config.model_profile == "auto":
        known_as = " ".join((engine_config.model, folder.resolve().name, *names))
        profile = choose_profile("auto", known_as).name
        chat_config = msgspec.structs.replace(chat_config, model_profile=profile)
    return Checkpoint(folder, names, encoder, defaults, chat_config)


def model_name(model: str, folder: Path) -> str:
    """Returns the name a model is served under: a hub id as it is, else the folder's name."""
    is_hub_id = bool(model) and not Path(model).expanduser().is_dir()
    return model if is_hub_id else folder.resolve().name
