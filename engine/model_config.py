"""The shape of a DeepSeek-V3.2 model, read from a checkpoint's `config.json`.

Fields carry the names of `config.json`. What the file may leave out (transformers drops the routing
fields on save, older files lack the newer ones) has the only value this engine computes; any other
value is refused by name, because ignoring it would give fluent but wrong output.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Index = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]

CONFIG_FILE = "config.json"

T = TypeVar("T", bound=msgspec.Struct)

# Fields whose other values describe models that this engine does not compute.
REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "topk_method": ("noaux_tc",),
    "scoring_func": ("sigmoid",),
    "moe_layer_freq": (1,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
    "rope_interleave": (True,),
    "index_topk_freq": (None, 1),
    "index_topk_pattern": (None,),
    "indexer_types": (None,),
    "index_init_tokens": (None, 0),
    "index_local_tokens": (None, 0),
    "index_k_norm_type": (None, "layernorm", "LayerNorm"),
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message names the file, the fault and the remedy."""


def field_error(file: str | Path, field: str, value: object, allowed: str) -> CheckpointError:
    """The error for one field of a JSON file, with its value and what would be allowed."""
    return CheckpointError(f"{file}: {field} is {value!r}; allowed: {allowed}")


class Yarn(msgspec.Struct, frozen=True, kw_only=True):
    """YaRN context extension (Peng et al. 2023, "YaRN"), as DeepSeek-V3 parametrises it."""

    factor: Annotated[float, msgspec.Meta(ge=1.0)]
    """Context length over `original_max_position_embeddings`."""
    original_max_position_embeddings: Count
    beta_fast: Positive = 32.0
    """Rotations over the original context above which a frequency is kept."""
    beta_slow: Positive = 1.0
    """Rotations over the original context below which a frequency is divided by `factor`."""
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    """Strength of the attention temperature folded into the softmax scale."""

    @property
    def temperature(self) -> float:
        """m = 0.1 · mscale_all_dim · ln(factor) + 1; attention logits are multiplied by m²."""
        return 0.1 * self.mscale_all_dim * math.log(self.factor) + 1.0


class Fp8(msgspec.Struct, frozen=True, kw_only=True):
    """How a checkpoint's `quantization_config` stores its linear weights."""

    weight_block_size: tuple[Count, Count] = (128, 128)
    """Rows and columns of a weight that share one scale."""
    scale_fmt: str | None = None
    """"ue8m0": scales, also those of activations, are powers of two."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of one DeepSeek-V3.2 model; widths in elements, positions in tokens."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_nextn_predict_layers: Index = 0
    """MTP layers; their ids follow the main layers'."""
    max_position_embeddings: Count
    rms_norm_eps: Positive = 1e-6

    # Multi-head latent attention
    num_attention_heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count

    # Lightning indexer
    index_n_heads: Count
    index_head_dim: Count
    index_topk: Count
    indexer_rope_interleave: bool = False
    """False: the indexer rotates half-split pairs, unlike the attention (DeepSeek-V3.2)."""

    # Feed-forward
    first_k_dense_replace: Index
    intermediate_size: Count
    moe_intermediate_size: Count
    n_routed_experts: Count
    n_shared_experts: Count
    num_experts_per_tok: Count
    n_group: Count
    topk_group: Count
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0

    # Rotary positions
    rope_theta: Positive = 10000.0
    rope_scaling: Yarn | None = None

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization: Fp8 | None = None

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """The configuration in `folder`/config.json.

        Raises CheckpointError when the file is missing or no JSON object, and as `from_json`.
        """
        file = Path(folder) / CONFIG_FILE
        return cls.from_json(read_json(file), file=file)

    @classmethod
    def from_json(cls, fields: dict[str, Any], *, file: str | Path = CONFIG_FILE) -> ModelConfig:
        """The configuration in a decoded `config.json`; `file` is named in errors.

        Raises CheckpointError naming the field, its value and what is allowed.
        """
        model_type = fields.get("model_type")
        if model_type != "deepseek_v32":
            hint = "; its attention has no indexer" if model_type == "deepseek_v3" else ""
            raise field_error(file, "model_type", model_type, f"'deepseek_v32'{hint}")
        for name, allowed in REQUIRED_VALUES.items():
            if name in fields and fields[name] not in allowed:
                raise field_error(file, name, fields[name], " or ".join(map(repr, allowed)))
        flat = dict(fields)
        flat["rope_theta"], flat["rope_scaling"] = _rope(fields, file)
        flat["quantization"] = _quantization(fields.get("quantization_config"), file)
        flat["eos_token_ids"] = _token_ids(fields.get("eos_token_id"), file)
        config = _convert(cls, flat, file)
        _check_relations(config, file)
        _check_layer_types(config, fields.get("mlp_layer_types"), file)
        return config

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head in the expanded (MHA) form."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Width of one cached latent row: the normalised latent, then the rotated shared key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """Factor on attention logits, the same in the expanded and in the absorbed form.

        1/sqrt(qk_head_dim), times YaRN's temperature squared. Not applied to the indexer.
        Source: "YaRN" (Peng et al. 2023), eq. 15, as used by DeepSeek-V3.
        """
        scale = 1.0 / math.sqrt(self.qk_head_dim)
        return scale * self.rope_scaling.temperature**2 if self.rope_scaling else scale

    @property
    def mtp_layer_ids(self) -> range:
        """Ids of the multi-token-prediction layers."""
        return range(self.num_hidden_layers, self.num_layers)

    @property
    def num_layers(self) -> int:
        """Main and MTP layers together."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def is_moe(self, layer: int) -> bool:
        """Whether `layer` (MTP layers included) routes to experts rather than one dense MLP."""
        return layer >= self.first_k_dense_replace

    def inv_freq(self) -> list[float]:
        """Angle per position of each rotary pair, [qk_rope_head_dim / 2]; shared by the indexer.

        Frequencies that turn often within the original context are kept, slow ones divided by the
        factor, a linear ramp between. Source: "YaRN" (Peng et al. 2023), eq. 17-20.
        """
        dim = self.qk_rope_head_dim
        frequencies = [self.rope_theta ** (-2 * i / dim) for i in range(dim // 2)]
        yarn = self.rope_scaling
        if yarn is None:
            return frequencies

        def pair_turning(rotations: float) -> float:
            wavelength = yarn.original_max_position_embeddings / (2 * math.pi * rotations)
            return dim * math.log(wavelength) / (2 * math.log(self.rope_theta))

        low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
        high = min(math.ceil(pair_turning(yarn.beta_slow)), dim - 1)
        width = high - low if high != low else 0.001
        ramp = [min(max((i - low) / width, 0.0), 1.0) for i in range(dim // 2)]
        return [f / yarn.factor * r + f * (1 - r) for f, r in zip(frequencies, ramp, strict=True)]


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What `generation_config.json` asks for where a request is silent; None: no wish."""

    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None = None
    top_k: Index | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0.0, le=2.0)] | None = None
    max_new_tokens: Count | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | Path) -> GenerationDefaults:
        """The defaults in `folder`/generation_config.json, and the eos ids of config.json.

        A missing file asks for nothing; `do_sample: false` means temperature 0.
        Raises CheckpointError naming file, field, value and what is allowed.
        """
        file = Path(folder) / "generation_config.json"
        fields = read_json(file) if file.exists() else {}
        if fields.get("do_sample") is False:
            fields["temperature"] = 0.0
        own = _token_ids(fields.get("eos_token_id"), file)
        config_file = Path(folder) / CONFIG_FILE
        models = _token_ids(read_json(config_file).get("eos_token_id"), config_file)
        fields["eos_token_ids"] = tuple(dict.fromkeys(own + models))
        return _convert(cls, fields, file)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; raises CheckpointError when there is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise CheckpointError(f"{file}: file not found") from None
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{file}: no readable JSON object ({error})") from error


def _convert(target: type[T], fields: dict[str, Any], file: str | Path) -> T:
    """`fields` as `target`, ignoring unknown names; errors name the field."""
    values = {}
    for field in msgspec.structs.fields(target):
        if field.name in fields:
            value = fields[field.name]
            try:
                values[field.name] = msgspec.convert(value, type=field.type, strict=True)
            except msgspec.ValidationError as error:
                raise field_error(file, field.name, value, str(error)) from None
        elif field.required:
            raise CheckpointError(f"{file}: {field.name} is missing")
    return target(**values)


def _rope(fields: dict[str, Any], file: str | Path) -> tuple[float, Yarn | None]:
    """Base and scaling from `rope_scaling`, or from the `rope_parameters` of transformers v5."""
    name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    block = fields.get(name) or {}
    if not isinstance(block, dict):
        raise field_error(file, name, block, "an object or null")
    theta = block.get("rope_theta", fields.get("rope_theta", 10000.0))
    kind = block.get("rope_type", block.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise field_error(file, f"{name}.rope_type", kind, "'yarn' or 'default'")
    for key, only in (("truncate", True), ("attention_factor", 1.0)):
        if block.get(key) not in (None, only):
            raise field_error(file, f"{name}.{key}", block[key], repr(only))
    yarn = _convert(Yarn, block, f"{file}: {name}")
    if yarn.mscale != yarn.mscale_all_dim:
        # Otherwise YaRN also scales cos and sin, which DeepSeek-V3.2 never does.
        allowed = f"the value of mscale_all_dim, {yarn.mscale_all_dim}"
        raise field_error(file, f"{name}.mscale", yarn.mscale, allowed)
    return theta, yarn


def _quantization(block: Any, file: str | Path) -> Fp8 | None:
    if block is None:
        return None
    if not isinstance(block, dict):
        raise field_error(file, "quantization_config", block, "an object or null")
    wanted = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    for key, only in wanted.items():
        if block.get(key, only) != only:
            raise field_error(file, f"quantization_config.{key}", block[key], repr(only))
    fp8 = _convert(Fp8, block, f"{file}: quantization_config")
    if fp8.weight_block_size != (128, 128):
        name = "quantization_config.weight_block_size"
        raise field_error(file, name, list(fp8.weight_block_size), "[128, 128]")
    return fp8


def _token_ids(value: Any, file: str | Path) -> tuple[int, ...]:
    """`eos_token_id`, which is null, one id or a list of ids."""
    if value is None:
        return ()
    try:
        ids = msgspec.convert(value if isinstance(value, list) else [value], type=list[Index])
    except msgspec.ValidationError:
        raise field_error(file, "eos_token_id", value, "null, an id, or a list of ids") from None
    return tuple(ids)


def _check_relations(config: ModelConfig, file: str | Path) -> None:
    per_group = config.n_routed_experts // config.n_group
    if config.n_routed_experts % config.n_group or per_group < 2:
        allowed = f"a divisor of n_routed_experts ({config.n_routed_experts}), groups of 2 or more"
        raise field_error(file, "n_group", config.n_group, allowed)
    if config.topk_group > config.n_group:
        raise field_error(file, "topk_group", config.topk_group, f"1 to n_group ({config.n_group})")
    candidates = config.topk_group * per_group
    if config.num_experts_per_tok > candidates:
        allowed = f"1 to {candidates}, the experts of topk_group groups"
        raise field_error(file, "num_experts_per_tok", config.num_experts_per_tok, allowed)
    rope_dim = config.qk_rope_head_dim
    if rope_dim % 2 or rope_dim > config.index_head_dim:
        allowed = f"an even width up to index_head_dim ({config.index_head_dim})"
        raise field_error(file, "qk_rope_head_dim", rope_dim, allowed)
    if config.index_head_dim & (config.index_head_dim - 1):
        allowed = "a power of two, for the Hadamard rotation"
        raise field_error(file, "index_head_dim", config.index_head_dim, allowed)


def _check_layer_types(config: ModelConfig, types: list[str] | None, file: str | Path) -> None:
    """The kind of every layer, as transformers writes it, must follow `first_k_dense_replace`."""
    layers = range(config.num_hidden_layers)
    expected = ["sparse" if config.is_moe(layer) else "dense" for layer in layers]
    if types is not None and types != expected:
        raise field_error(file, "mlp_layer_types", types, f"{expected}, by first_k_dense_replace")
