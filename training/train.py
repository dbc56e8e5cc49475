"""Trains the embedded checkpoint: `python -m training.train`, resumable, the same for one seed."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from api.chat.encoding import Encoder
from training.data import make_batch
from training.initialise import initialise
from training.losses import stage_loss
from training.model import Context, DeepseekV32
from training.muon import Muon
from training.parallel import add_up, average_gradients, share_rows, world
from training.probe import induction, probe
from training.snapshot import (
    Optimisers,
    load_model,
    load_optimisers,
    read_position,
    save_snapshot,
)
from training.stages import EMBEDDED, RECIPE, Recipe, Stage


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> DeepseekV32:
    """The untrained model of a recipe."""
    torch.manual_seed(recipe.seed)
    model = DeepseekV32(recipe.model)
    initialise(model, tokenizer, recipe.seed, copying=recipe.copying)
    return model


def build_optimisers(model: DeepseekV32, stage: Stage) -> Optimisers:
    """Muon for the matrices inside layers, AdamW for everything else; frozen weights in neither.

    Sets `requires_grad` of every parameter according to what the stage teaches.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        of_indexer = ".indexer." in name
        if stage.learns == "indexer":
            parameter.requires_grad_(of_indexer)
        else:
            parameter.requires_grad_(not of_indexer or stage.mode != "dense")
        if not parameter.requires_grad:
            continue
        plain = name.startswith(("model.embed_tokens", "lm_head")) or name.endswith(
            ("mlp.gate.weight", "weights_proj.weight")
        )
        (vectors if plain or parameter.dim() < 2 else matrices).append(parameter)
    return {
        "muon": Muon(matrices, lr=stage.matrix_rate, weight_decay=0.02),
        "adam": torch.optim.AdamW(
            vectors, lr=stage.vector_rate, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0
        ),
    }


def train_stage(
    model: DeepseekV32,
    encoder: Encoder,
    recipe: Recipe,
    stage: Stage,
    run: Path,
    first_step: int,
    save_every: int,
    probe_every: int,
) -> None:
    """Runs `stage` from `first_step` to its end, writing snapshots and measurements to `run`."""
    rank, _ = world()
    optimisers = build_optimisers(model, stage)
    if first_step:
        load_optimisers(run / "last.safetensors", model, optimisers)
    model.quantise(stage.quantise)
    context = Context(model.config, stage.mode, stage.yarn, torch.bfloat16)
    rates = {"muon": stage.matrix_rate, "adam": stage.vector_rate}
    bar = tqdm(
        range(first_step, stage.steps),
        stage.name,
        stage.steps,
        initial=first_step,
        file=sys.stderr,
        mininterval=5.0,
        disable=rank > 0,
    )
    rows, _ = share_rows(stage.rows)
    mtp_rows = max(1, stage.mtp_rows // world()[1])
    started, tokens = time.monotonic(), 0
    for step in bar:
        batch = make_batch(
            encoder,
            stage.mix,
            rows,
            stage.length_tokens,
            stage.prompt_weight,
            f"{recipe.seed} {stage.name} {step}",
        )
        total, loss, index = stage_loss(
            model,
            batch,
            context,
            mtp_weight=stage.mtp_weight,
            mtp_rows=mtp_rows,
            model_learns=stage.learns == "model",
            phase=step,
        )
        total.backward()
        average_gradients(model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for kind, optimiser in optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rates[kind] * stage.factor(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        add_up([router.load for router in model.routers()])
        for router in model.routers():
            if stage.learns == "model":
                router.balance(stage.balance_rate)
        tokens += stage.rows * stage.length_tokens
        if rank:
            continue
        record = {
            "stage": stage.name,
            "step": step,
            "loss": round(loss.item(), 4),
            "index": round(index.item(), 4),
            "norm": round(float(norm), 3),
            "tokens_per_s": round(tokens / (time.monotonic() - started)),
        }
        if (step + 1) % probe_every == 0 or step + 1 == stage.steps:
            shares = probe(
                model, encoder, {stage.name: stage.mix}, context, 48, stage.length_tokens
            )
            record["held_out"] = shares | {"induction": induction(model, context)}
            tqdm.write(
                f"{stage.name} {step + 1}: "
                + " ".join(
                    f"{label.split('.', 1)[1]}={share:.2f}" for label, share in shares.items()
                ),
                file=sys.stderr,
            )
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        bar.set_postfix(
            loss=record["loss"], index=record["index"], tok_s=record["tokens_per_s"], refresh=False
        )
        if (step + 1) % save_every == 0:
            save_snapshot(run / "last.safetensors", model, optimisers, stage.name, step + 1)
    if rank:
        return
    save_snapshot(run / "last.safetensors", model, optimisers, stage.name, stage.steps)
    save_snapshot(run / f"{stage.name}.safetensors", model, {}, stage.name, stage.steps)


def train(
    recipe: Recipe, encoder: Encoder, run: Path, save_every: int = 50, probe_every: int = 250
) -> DeepseekV32:
    """Runs all stages of `recipe`, or what is left of them in folder `run`; returns the model."""
    if world()[0] == 0:
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.json").write_bytes(msgspec.json.format(msgspec.json.encode(recipe)))
    model = build_model(recipe, encoder.tokenizer)
    stage_names = [stage.name for stage in recipe.stages]
    first, step = 0, 0
    if (run / "last.safetensors").exists():
        name, step = read_position(run / "last.safetensors")
        load_model(run / "last.safetensors", model)
        first = stage_names.index(name)
        if step >= recipe.stages[first].steps:
            first, step = first + 1, 0
    for stage in recipe.stages[first:]:
        train_stage(model, encoder, recipe, stage, run, step, save_every, probe_every)
        step = 0
    return model


def work(rank: int, workers: int, port: int, run: Path) -> None:
    """One of the single-threaded training processes."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
        )
    train(RECIPE, Encoder.from_folder(EMBEDDED), run)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port: int = probe_socket.getsockname()[1]
    return port


def main() -> None:
    """Command line of `python -m training.train`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/embedded"),
        help="folder of snapshots and log; training resumes from what is there",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="single-threaded processes; the weights depend on their number",
    )
    arguments = parser.parse_args()
    if arguments.workers == 1:
        work(0, 1, 0, arguments.run)
    else:
        spawn(work, (arguments.workers, free_port(), arguments.run), nprocs=arguments.workers)


if __name__ == "__main__":
    main()
