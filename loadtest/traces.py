"""Traces of real traffic, in the two formats that are published.

    Mooncake   a JSON object per line: timestamp (ms), input_length, output_length, and hash_ids,
               one per 512 prompt tokens; equal ids mean equal text after equal text
    Azure      CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens; no prefixes are known

A trace is read whole before anything runs, and what is wrong with it is said with its file and
line.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from cost_model.costs import LONGEST_TOKENS

BLOCK_TOKENS = 512
"""Prompt tokens of one hash id."""
AZURE_HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


class TraceError(ValueError):
    """A trace that cannot be used; the message names the file, the line and what it allows."""


class TraceRequest(msgspec.Struct, frozen=True):
    """One request of a trace."""

    arrival_s: float
    """Since the trace's first request."""
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """Identities of the prompt's blocks of BLOCK_TOKENS; empty: unlike any other prompt."""
    tenant: str = ""


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    tenant: str = ""


def load_trace(path: Path) -> list[TraceRequest]:
    """Returns a trace's requests in the order of their arrival.

    Raises TraceError for a file that cannot be read, is neither format, or holds no request; for a
    line that is broken; for a length outside its range; for time that goes backwards.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise TraceError(f"{path}: no requests in it")
    read = _mooncake if numbered[0][1].lstrip().startswith(b"{") else _azure
    requests: list[TraceRequest] = []
    first_s = last_s = 0.0
    for number, request in read(path, numbered):
        if not requests:
            first_s = last_s = request.arrival_s
        if request.arrival_s < last_s:
            raise TraceError(
                f"{path}:{number}: the request comes {last_s - request.arrival_s:g} s before the "
                "one above it; arrivals must not go back in time"
            )
        last_s = request.arrival_s
        requests.append(msgspec.structs.replace(request, arrival_s=last_s - first_s))
    if not requests:
        raise TraceError(f"{path}: no requests in it")
    return requests


def _mooncake(path: Path, lines: list[tuple[int, bytes]]) -> Iterator[tuple[int, TraceRequest]]:
    decode = msgspec.json.Decoder(_MooncakeLine).decode
    for number, line in lines:
        where = f"{path}:{number}"
        try:
            fields = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TraceError(f"{where}: {error}") from None
        _require(where, "input_length", fields.input_length, 1)
        _require(where, "output_length", fields.output_length, 0)
        if fields.timestamp < 0:
            raise TraceError(f"{where}: timestamp is {fields.timestamp:g}; allowed: 0 ms and above")
        blocks = -(-fields.input_length // BLOCK_TOKENS)
        if len(fields.hash_ids) != blocks:
            raise TraceError(
                f"{where}: {len(fields.hash_ids)} hash_ids for {fields.input_length} tokens; "
                f"allowed: {blocks}, one per {BLOCK_TOKENS}"
            )
        yield (
            number,
            TraceRequest(
                fields.timestamp / 1000,
                fields.input_length,
                fields.output_length,
                tuple(fields.hash_ids),
                fields.tenant,
            ),
        )


def _azure(path: Path, lines: list[tuple[int, bytes]]) -> Iterator[tuple[int, TraceRequest]]:
    for place, (number, line) in enumerate(lines):
        where = f"{path}:{number}"
        try:
            cells = [cell.strip() for cell in line.decode("utf-8-sig").split(",")]
        except UnicodeDecodeError:
            raise TraceError(f"{where}: not text in UTF-8") from None
        if not place:
            if cells != AZURE_HEADER:
                raise TraceError(
                    f"{where}: neither a JSON object nor the header {','.join(AZURE_HEADER)}"
                )
            continue
        if len(cells) != len(AZURE_HEADER):
            raise TraceError(
                f"{where}: {len(cells)} cells; allowed: {len(AZURE_HEADER)}, as in the header"
            )
        try:
            arrival_s = datetime.fromisoformat(cells[0]).timestamp()
        except (ValueError, OverflowError, OSError):
            raise TraceError(f"{where}: {cells[0]!r} is no time; allowed: ISO 8601") from None
        prompt = _require(where, "ContextTokens", _integer(where, cells[1]), 1)
        output = _require(where, "GeneratedTokens", _integer(where, cells[2]), 0)
        yield number, TraceRequest(arrival_s, prompt, output)


def _integer(where: str, cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise TraceError(f"{where}: {cell!r} is no whole number") from None


def _require(where: str, name: str, tokens: int, low: int) -> int:
    if not low <= tokens <= LONGEST_TOKENS:
        raise TraceError(f"{where}: {name} is {tokens}; allowed: {low} to {LONGEST_TOKENS} tokens")
    return tokens
