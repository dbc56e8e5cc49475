"""The shape of a model of the DeepSeek-V3 family, as far as its cost depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from cost_model.errors import CostError

LARGEST = 1 << 31
Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Index = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]

ARCHITECTURES = ("deepseek_v3", "deepseek_v32")


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Widths in elements, named as in a checkpoint's `config.json`; without an indexer V3/V3.1."""

    name: str = ""
    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_nextn_predict_layers: Index = 0
    """MTP layers: they take memory, but their time is not counted (rates are per output token)."""
    first_k_dense_replace: Index
    intermediate_size: Count
    moe_intermediate_size: Count
    n_routed_experts: Count
    n_shared_experts: Index
    num_experts_per_tok: Count
    num_attention_heads: Count
    q_lora_rank: Count
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    index_n_heads: Index = 0
    index_head_dim: Index = 0
    index_topk: Index = 0

    def __post_init__(self) -> None:
        indexer = (self.index_n_heads, self.index_head_dim, self.index_topk)
        if any(indexer) != all(indexer):
            raise CostError(
                "index_n_heads, index_head_dim, index_topk are "
                f"{indexer}; allowed: all positive (an indexer) or all 0 (none)"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise CostError(
                f"first_k_dense_replace is {self.first_k_dense_replace}; "
                f"allowed: 0 to num_hidden_layers = {self.num_hidden_layers}"
            )
        if self.num_experts_per_tok > self.n_routed_experts:
            raise CostError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; "
                f"allowed: 1 to n_routed_experts = {self.n_routed_experts}"
            )

    @property
    def sparse(self) -> bool:
        """Whether an indexer selects the tokens attended to."""
        return self.index_topk > 0

    @property
    def without_indexer(self) -> ModelShape:
        """The same model when every token is attended to."""
        return msgspec.structs.replace(self, index_n_heads=0, index_head_dim=0, index_topk=0)

    @property
    def moe_layers(self) -> int:
        """Main layers with experts."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @classmethod
    def from_config(cls, fields: dict[str, Any], name: str = "") -> ModelShape:
        """The shape in the content of a Hugging Face `config.json` of this architecture.

        Raises CostError naming the field for another architecture, a missing or an absurd field.
        """
        kind = fields.get("model_type")
        if kind not in ARCHITECTURES:
            raise CostError(f"model_type is {kind!r}; allowed: {', '.join(ARCHITECTURES)}")
        known = {field: fields[field] for field in cls.__struct_fields__ if field in fields}
        if kind == "deepseek_v3":
            known = {field: known[field] for field in known if not field.startswith("index_")}
        elif "index_topk" not in known:
            raise CostError("index_topk is missing; a deepseek_v32 config has it")
        try:
            return msgspec.convert({**known, "name": name or kind}, cls)
        except msgspec.ValidationError as error:
            raise CostError(f"config.json: {error}") from None

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelShape:
        """The shape of the checkpoint in a folder (or of a `config.json` itself)."""
        path = Path(folder)
        file = path / "config.json" if path.is_dir() else path
        try:
            fields = json.loads(file.read_bytes())
        except OSError as error:
            raise CostError(f"{file}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise CostError(f"{file}: not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise CostError(f"{file}: a JSON object was expected")
        name = file.parent.resolve().name if file.name == "config.json" else file.stem
        return cls.from_config(fields, name)


V31 = ModelShape(
    name="v3.1",
    vocab_size=129280,
    hidden_size=7168,
    num_hidden_layers=61,
    num_nextn_predict_layers=1,
    first_k_dense_replace=3,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
"""DeepSeek-V3.1-Terminus. Source: its `config.json`."""
V32 = msgspec.structs.replace(
    V31, name="v3.2", index_n_heads=64, index_head_dim=128, index_topk=2048
)
"""DeepSeek-V3.2. Source: its `config.json`."""

SHAPES = {"v3.1": V31, "v3.2": V32}


def shape_named(name: str) -> ModelShape:
    """The shape called `name` ("v3.1", "v3.2"), or that of a checkpoint folder or config file."""
    if name in SHAPES:
        return SHAPES[name]
    try:
        found = bool(name) and Path(name).exists()
    except OSError:  # a name that no file system takes
        found = False
    if found:
        return ModelShape.from_folder(name)
    raise CostError(
        f"model is {name!r}; allowed: {', '.join(SHAPES)}, or a folder with a config.json"
    )
