"""`winnow batch in.jsonl out.jsonl`: a file of requests, an engine, no server."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from api.batch import BatchCounts, run_batch
from api.checkpoint import model_name
from api.cli import ENGINE_GROUPS
from api.errors import ApiError
from api.logs import set_up_logging
from api.options import HelpFormatter, add_options, build, read_values
from api.service import ChatService, load_prompt_format
from engine.client import (
    CheckpointError,
    ConfigError,
    EngineClient,
    EngineConfig,
    EngineDead,
    resolve_model,
)

EPILOG = """\
examples:
  winnow batch requests.jsonl answers.jsonl
  winnow batch requests.jsonl answers.jsonl --model ./DeepSeek-V3.2 --max-num-seqs 256

a line of requests.jsonl:
  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
   "body": {"model": "deepseek-v3.2-tiny", "messages": [{"role": "user", "content": "Hello"}]}}
"""


def main(arguments: Sequence[str]) -> int:
    """Answers the file; returns 0 when every line got an answer with status 200, else 1."""
    parser = argparse.ArgumentParser(
        prog="winnow batch",
        usage="winnow batch INPUT OUTPUT [options]",
        description="Answer a file of requests in OpenAI's batch format.",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="JSON Lines, one request per line.")
    parser.add_argument("output", metavar="OUTPUT", help="JSON Lines, one answer per line.")
    parser.add_argument(
        "--served-model-name",
        metavar="NAME",
        nargs="+",
        default=[],
        help="Names the requests may use; empty: the checkpoint's name.",
    )
    groups = {"model": ("model", "revision", "max_model_len"), **ENGINE_GROUPS}
    add_options(parser, (EngineConfig,), groups)
    parsed = parser.parse_args(arguments)
    try:
        # Nobody reads a batch as it streams.
        values = {"inter_token_target_s": 0.0} | read_values(parsed, (EngineConfig,))
        config = build(EngineConfig, values)
        set_up_logging("warning")
        counts = asyncio.run(
            answer_file(
                config, Path(parsed.input), Path(parsed.output), tuple(parsed.served_model_name)
            )
        )
    except (ConfigError, CheckpointError, EngineDead, ApiError, OSError) as error:
        print(f"winnow batch: {error}", file=sys.stderr)
        return 1
    print(
        f"{counts.completed} answered, {counts.failed} failed -> {parsed.output}", file=sys.stderr
    )
    return 1 if counts.failed else 0


async def answer_file(
    config: EngineConfig, source: Path, target: Path, names: tuple[str, ...]
) -> BatchCounts:
    """Starts an engine, answers every line of `source` into `target`, ends the engine.

    Raises OSError, CheckpointError or EngineDead before anything is answered, ApiError(503) when
    the engine dies on the way.
    """
    with source.open("rb") as lines:
        total = sum(1 for line in lines if line.strip())
    if target.exists() and os.path.samefile(source, target):
        raise ConfigError(f"{target} is the input; the output needs a file of its own")
    folder = await asyncio.to_thread(resolve_model, config.model, config.revision)
    encoder, defaults = load_prompt_format(folder)
    engine = await EngineClient.start(config)
    try:
        names = names or (model_name(config.model, folder),)
        service = ChatService(engine, encoder, names, defaults)
        with (
            source.open("rb") as lines,
            target.open("wb") as output,
            tqdm(total=total, desc="batch", unit="request", file=sys.stderr) as bar,
        ):
            # Twice what runs at once: the queue is never empty, and never long.
            return await run_batch(
                service,
                lines,
                output,
                concurrency=min(2 * config.max_num_seqs, config.max_queued_requests),
                progress=bar.update,
            )
    finally:
        await engine.close()
