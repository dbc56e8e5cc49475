"""Fuzzes parser, prompt encoder, tool calls and schemas with fresh seeds until the time is over.

    python -m tests.fuzz.run --minutes 10 [--seed N]

Each round runs the fuzzing tests of `make test` with seeds that no round had before. The first
finding ends it: what pytest prints names the example, and the line before it says how to see it
again. The exit status is pytest's then, else 0.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/api/chat/test_fuzz.py",
    "tests/api/chat/test_parser_properties.py",
    "tests/api/chat/test_encoding.py",
    "tests/api/chat/test_rendering.py",
    "tests/api/chat/test_detokenizer.py",
    "tests/api/test_choice.py",
    "tests/api/test_fuzz_requests.py",
    "tests/api/grammar/test_fuzz_schemas.py",
    "tests/api/test_any_body.py",
)
MUTATIONS = 1000
"""Of each document in one round."""
SEEDS = 2**31


def fuzz(seed: int, mutations: int) -> subprocess.CompletedProcess[str]:
    """Runs one round; `seed` is hypothesis's and the first of the mutations."""
    options = ("-x", "-p", "no:cacheprovider", "--timeout", "3600")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *TESTS, *options, f"--hypothesis-seed={seed}"],
        cwd=ROOT,
        env=os.environ | {"FUZZ_SEED": str(seed), "FUZZ_MUTATIONS": str(mutations)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main() -> int:
    """Fuzzes for --minutes, one round at least; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--mutations", type=int, default=MUTATIONS)
    parser.add_argument("--seed", type=int, help="of the first round; absent: a random one")
    options = parser.parse_args()
    seed = random.randrange(SEEDS) if options.seed is None else options.seed
    end_s = time.monotonic() + 60 * options.minutes
    rounds = 0
    while rounds == 0 or time.monotonic() < end_s:
        done = fuzz(seed, options.mutations)
        rounds += 1
        if done.returncode:
            again = f"--minutes 0 --mutations {options.mutations} --seed {seed}"
            print(f"fuzz: a finding; again: python -m tests.fuzz.run {again}", file=sys.stderr)
            print(done.stdout)
            return done.returncode
        left_s = max(0.0, end_s - time.monotonic())
        last = done.stdout.strip().splitlines()[-1]
        print(f"fuzz: round {rounds}, seed {seed}: {last}; {left_s:.0f} s left", file=sys.stderr)
        seed += options.mutations
    return 0


if __name__ == "__main__":
    sys.exit(main())
