"""The embedded tokenizer: byte-level BPE trained on the training conversations."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from api.chat.template import Template
from training.data import Mix, draw_case
from training.stages import EMBEDDED, RECIPE
from training.tasks.chat import BEYOND, BEYOND_REASONING, BEYOND_REPLY, INTENTS
from training.tasks.lexicon import FILLER, LEXICON

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL_TOKENS = (BOS, EOS, PAD, "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>")
DSML = "｜DSML｜"
"""An added token that is not flagged special, as in DeepSeek-V3.2."""
WORD_PATTERN = (
    r"[^\r\n\p{L}\p{P}\p{S}\p{N}]?[\p{L}\p{M}]+"  # a word with the space before it
    r"| ?[\p{P}\p{S}]+[\r\n]*"  # punctuation, up to the end of the line
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LAYOUT = (
    "<result>sunny</result>\n</function_results>\n\n<function_results>\n",
    'function_calls>\ninvoke name="get_time">\nparameter name="city" string="true">Oslo</',
    'parameter>\nparameter name="a" string="false">5</',
    "\n\n<",
    "parameter>\n</",
    "invoke>\n</",
    "function_calls>",
)
CORPUS_MIXES = (Mix(facts=1.0, filler=(0, 4)), Mix(chat=1.0), Mix(tools=1.0), Mix(mixed=1.0))


def corpus(folder: Path, seed: int, cases: int) -> list[str]:
    """Plain texts of `cases` conversations, of each word alone, and of the prompt's layout.

    folder holds the checkpoint's `encoding/` folder, whose tools block is part of the layout.
    """
    rng = Random(seed)
    layout = Template.from_folder(folder).tools_block([]).replace(DSML, " ")
    texts: list[str] = []
    for words in LEXICON.values():
        texts += [f"{word} {word} >{word}<" for word in words for _ in range(20)]
    for intent in INTENTS:
        texts += [*intent.phrasings, intent.reply, intent.reasoning] * 10
    texts += [*BEYOND, BEYOND_REPLY, BEYOND_REASONING, *FILLER] * 10
    for _ in range(cases):
        for mix in CORPUS_MIXES:
            case = draw_case(rng, mix)
            for message in case.messages:
                texts += [message.content, message.reasoning or ""]
                texts += [one.arguments for one in message.tool_calls]
            texts += [json.dumps(schema) for schema in case.tools]
            texts += [layout, *LAYOUT]
    return texts


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids or fewer; digits are split one by one.

    Every byte is in the alphabet, so that any UTF-8 text survives a round trip. The special tokens
    take the first ids (BOS 0, EOS 1).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=4,
        show_progress=False,
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(DSML, special=False, normalized=False)])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Trains the embedded tokenizer of the recipe: `python -m training.tokenizer`."""
    texts = corpus(EMBEDDED, RECIPE.corpus_seed, RECIPE.corpus_cases)
    write_tokenizer(train_tokenizer(texts, RECIPE.model.vocab_size), EMBEDDED)


if __name__ == "__main__":
    main()
