"""The front door: `winnow <command>` runs the command's own module, imported only then."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "serve": ("api.cli", "serve a checkpoint behind an OpenAI-compatible API"),
    "batch": ("api.batch_cli", "answer a file of requests in OpenAI's batch format"),
    "bench": ("benchmarks.cli", "measure this machine, alone and beside other engines"),
    "load": ("loadtest.live.cli", "put a server under load and hold it to targets"),
    "simulate": ("loadtest.cli", "a trace or agents on N GPUs, on a virtual clock"),
    "cost": ("cost_model.cli", "price tokens, requests, tool loops and machines"),
}
"""Command -> the module whose main(arguments) runs it, and what it does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status, 2 for a command that does not exist."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(_usage())
        return 0
    if command in ("-V", "--version"):
        print(f"winnow {importlib.import_module('api.version').version()}")
        return 0
    if command not in COMMANDS:
        print(f"winnow: no command {command!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[command][0])
    status: int = module.main(rest)
    return status


def _usage() -> str:
    lines = [f"  {name:<8} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: winnow <command> [options]",
            "",
            "Winnow serves DeepSeek-V3.2: paged latent cache, indexer-guided top-k attention.",
            "",
            "commands:",
            *lines,
            "",
            "`winnow <command> --help` explains a command; `winnow --version` prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
