"""A small byte-level BPE tokenizer with DeepSeek-V3.2's special strings, and an encoder on it."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from api.chat.encoding import Encoder
from api.chat.markers import CONTROL_MARKERS, DSML
from api.chat.template import Template

REPOSITORY = Path(__file__).parents[3]

CORPUS = [
    "hello Hello! I am DeepSeek. thinking... 1+1=? the weather in Paris is sunny",
    'function_calls function_results result invoke name="get_date" parameter string="true"',
    "<result>2025-12-01</result>\n</function_results>\n\n",
    "you can call tools. Text has quotes. In thinking mode, think again after each result.",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """DSML is not flagged special, as in the checkpoint: the flag must not be what is relied on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(
        [AddedToken(marker, normalized=False, special=marker != DSML) for marker in CONTROL_MARKERS]
    )
    return tokenizer


@pytest.fixture(scope="session")
def template() -> Template:
    return Template.from_folder(REPOSITORY / "engine" / "embedded" / "deepseek-v3.2-tiny")


@pytest.fixture(scope="session")
def encoder(tokenizer: Tokenizer, template: Template) -> Encoder:
    return Encoder(tokenizer, template)
