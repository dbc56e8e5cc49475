"""Weights out of a checkpoint folder in Hugging Face layout: safetensors only, never pickle.

Every header is checked against the table of `engine.tensors` before the first weight is read, so
a wrong checkpoint fails in a second, with all its faults named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from engine.model_config import CheckpointError, ModelConfig, field_error, read_json
from engine.tensors import FP8_BLOCK, SCALE_SUFFIX, TensorSpec, expected_tensors, scale_shape

INDEX_FILE = "model.safetensors.index.json"
LISTED_FAULTS = 10

FP8 = "F8_E4M3"
DTYPE_BYTES = {FP8: 1, "BF16": 2, "F16": 2, "F32": 4}


class StoredTensor(msgspec.Struct, frozen=True):
    """One tensor as a shard's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, for example F8_E4M3."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def load_weights(
    folder: str | Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    keep_fp8: bool = False,
    progress: bool = True,
) -> dict[str, torch.Tensor]:
    """Name -> weight on `device`, for every name of `expected_tensors(config)`.

    Beside the result, no more than the block scales and one weight are in memory at a time.
    Linear and embedding weights become `dtype`, the rest float32; FP8 linears are dequantised,
    or with `keep_fp8` returned as float8_e4m3fn next to their float32 `X.weight_scale_inv`.
    The MTP layers' embedding and head are the main model's where the checkpoint stores none, or
    the same values. `progress` draws a bar on stderr.
    Raises CheckpointError naming files and tensors, with expected and found shapes.
    """
    table = expected_tensors(config)
    stored = read_headers(shard_files(Path(folder)))
    _check(Path(folder), table, stored)
    scale_names = stored.keys() - table.keys()
    weights: dict[str, torch.Tensor] = {}
    total_bytes = sum(tensor.size_bytes for tensor in stored.values())
    with tqdm(
        total=total_bytes, desc="weights", unit="B", unit_scale=True, disable=not progress
    ) as bar:
        # A weight and its scale may lie in different shards: the small scales come first.
        scales = {name: scale.float() for name, scale in _read(stored, scale_names, bar.update)}
        for name, stored_weight in _read(stored, table.keys(), bar.update):
            if stored[name].dtype != FP8:
                held = torch.float32 if table[name].role == "float32" else dtype
                # A copy, because what safetensors returns is a window into the mapped file.
                weights[name] = stored_weight.to(device, held, copy=True)
            elif keep_fp8:
                weights[name] = stored_weight.to(device, copy=True)
                weights[name + SCALE_SUFFIX] = scales[name + SCALE_SUFFIX].to(device, copy=True)
            else:
                scale = scales[name + SCALE_SUFFIX]
                weights[name] = dequantise(stored_weight, scale, dtype).to(device)
    _share(table, weights)
    return weights


def dequantise(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of an FP8 weight: each 128x128 block times its scale, rounded once to `dtype`.

    weight [out, in] float8_e4m3fn; scale [ceil(out/128), ceil(in/128)] float32; result [out, in].
    Source: DeepSeek-V3 report, section 3.3.2.
    """
    rows, columns = weight.shape
    result = torch.empty(rows, columns, dtype=dtype)
    # One row of blocks at a time: a float32 image of the whole weight would be four times as big.
    for block, first in enumerate(range(0, rows, FP8_BLOCK)):
        band = slice(first, first + FP8_BLOCK)
        column_scales = scale[block].repeat_interleave(FP8_BLOCK)[:columns]
        result[band] = weight[band].float() * column_scales
    return result


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in `folder`, by its index if it has one.

    Raises CheckpointError when there are none, when one is missing, or when only pickles exist.
    """
    index_file = folder / INDEX_FILE
    if not index_file.exists():
        found = sorted(folder.glob("model*.safetensors"))
        if found:
            return found
        pickles = [f.name for kind in ("*.bin", "*.pt", "*.pth") for f in folder.glob(kind)]
        if pickles:
            raise CheckpointError(
                f"{folder}: weights only as pickle ({', '.join(sorted(pickles)[:3])}), which can "
                "run any code when opened; convert them to safetensors"
            )
        raise CheckpointError(f"{folder}: no model*.safetensors found")
    names = _indexed_files(index_file)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{index_file}: {len(missing)} files missing: {_first(missing)}")
    return [folder / name for name in names]


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Name -> shape, dtype and file of every tensor in `files`; no weight is read.

    Raises CheckpointError for a corrupt or truncated file and for a name stored twice.
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        with _open(file) as shard:
            for name in shard.keys():
                if name in stored:
                    other = stored[name].file.name
                    raise CheckpointError(f"{file}: {name} is also stored in {other}")
                header = shard.get_slice(name)
                stored[name] = StoredTensor(file, tuple(header.get_shape()), header.get_dtype())
    return stored


def _indexed_files(index_file: Path) -> list[str]:
    """Names of the shards an index lists, in its order; each must lie beside the index."""
    weight_map = read_json(index_file).get("weight_map")
    try:
        names = msgspec.convert(weight_map, type=dict[str, str]).values()
    except msgspec.ValidationError as error:
        raise field_error(index_file, "weight_map", weight_map, str(error)) from None
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise field_error(index_file, "weight_map", name, "*.safetensors in the same folder")
    return list(dict.fromkeys(names))


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: corrupt or truncated safetensors file ({error})") from error


def _read(
    stored: dict[str, StoredTensor], names: Collection[str], update: Callable[[int], Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each stored tensor of `names`, file by file; `update` hears the bytes done."""
    by_file: dict[Path, list[str]] = {}
    for name, tensor in stored.items():
        if name in names:
            by_file.setdefault(tensor.file, []).append(name)
    for file, names_here in by_file.items():
        with _open(file) as shard:
            for name in names_here:
                yield name, shard.get_tensor(name)
                update(stored[name].size_bytes)


def _check(folder: Path, table: dict[str, TensorSpec], stored: dict[str, StoredTensor]) -> None:
    """Raises CheckpointError naming what is missing, extra, misshapen or of the wrong dtype."""
    faults = []
    expected = {name: spec.shape for name, spec in table.items()}
    optional = {name for name, spec in table.items() if spec.shared_with}
    for name, spec in table.items():
        tensor = stored.get(name)
        if tensor and tensor.dtype == FP8 and spec.role == "linear":
            expected[name + SCALE_SUFFIX] = scale_shape(spec.shape)
        elif tensor and (tensor.dtype == FP8 or tensor.dtype not in DTYPE_BYTES):
            allowed = "BF16, F16, F32" + (f", {FP8}" if spec.role == "linear" else "")
            faults.append(f"{name}: stored as {tensor.dtype}; allowed: {allowed}")
    for name, shape in expected.items():
        tensor = stored.get(name)
        if tensor is None:
            if name not in optional:
                faults.append(f"{name}: missing; expected shape {list(shape)}")
        elif tensor.shape != shape:
            faults.append(f"{name}: expected shape {list(shape)}, found {list(tensor.shape)}")
        elif name not in table and tensor.dtype not in ("F32", "BF16"):
            faults.append(f"{name}: stored as {tensor.dtype}; allowed: F32, BF16")
    for name, tensor in stored.items():
        if name not in expected:
            faults.append(f"{name}: not part of this model; found shape {list(tensor.shape)}")
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults[:LISTED_FAULTS])
        more = len(faults) - LISTED_FAULTS
        rest = f"\n  and {more} more" if more > 0 else ""
        raise CheckpointError(
            f"{folder}: {len(faults)} tensors do not fit config.json{listed}{rest}"
        )


def _share(table: dict[str, TensorSpec], weights: dict[str, torch.Tensor]) -> None:
    """Replaces absent and equal copies of the main model's embedding and head by the originals."""
    for name, spec in table.items():
        if spec.shared_with:
            main = weights[spec.shared_with]
            if name not in weights or torch.equal(weights[name], main):
                weights[name] = main


def _first(names: list[str]) -> str:
    return ", ".join(names[:LISTED_FAULTS]) + (", ..." if len(names) > LISTED_FAULTS else "")
