"""Who may import whom: the folders' layering, held by reading every import statement.

Imports under TYPE_CHECKING and inside functions count like any other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OWN = {
    "kernels": (),
    "cost_model": (),
    "scheduler": (),
    "engine": ("kernels", "scheduler", "cost_model"),
    "api/chat": ("scheduler.retention",),
    "api": (
        "api.chat",
        "engine.client",
        "engine.messages",
        "scheduler.retention",
        "scheduler.admission",
        "cost_model",
    ),
    "loadtest": ("cost_model", "api.chat"),
    "training": ("engine", "kernels", "api.chat"),
    "benchmarks": ("engine", "kernels", "scheduler", "cost_model", "api.chat", "loadtest"),
    "deploy": ("api.metrics.names",),
    "winnow.py": (),
}
"""Layer -> the modules of other layers that it may import, and everything below them."""

THIRD_PARTY = {
    "kernels": ("torch", "triton"),
    "cost_model": ("msgspec", "numpy"),
    "scheduler": ("msgspec",),
    "engine": (
        "huggingface_hub",
        "llguidance",
        "msgspec",
        "numpy",
        "safetensors",
        "tokenizers",
        "torch",
        "tqdm",
        "triton",
    ),
    "api/chat": ("msgspec", "tokenizers"),
    "api": (
        "fastapi",
        "h11",
        "llguidance",
        "msgspec",
        "prometheus_client",
        "starlette",
        "tokenizers",
        "tqdm",
        "uvicorn",
    ),
    "loadtest": (
        "gevent",
        "h11",
        "httpx",
        "locust",
        "msgspec",
        "numpy",
        "openai",
        "prometheus_client",
        "tqdm",
    ),
    "training": ("msgspec", "numpy", "safetensors", "tokenizers", "torch", "tqdm"),
    "benchmarks": (
        "httpx",
        "msgspec",
        "numpy",
        "safetensors",
        "tokenizers",
        "torch",
        "tqdm",
        "transformers",
    ),
    "deploy": ("grafana_foundation_sdk", "httpx", "pydantic", "ray", "starlette"),
    "winnow.py": (),
}
"""Layer -> the packages that it may import."""

EXCEPTIONS = {
    "api/metrics/tracing.py": ("opentelemetry",),
    "benchmarks/api_servers.py": ("api", "uvicorn"),
    "benchmarks/context.py": ("matplotlib",),
    "benchmarks/metrics_steps.py": ("api",),
    "benchmarks/llama_cpp.py": ("gguf", "llama_cpp"),
    "loadtest/door.py": ("scheduler",),
    "loadtest/live/page.py": ("jinja2", "markupsafe"),
    "loadtest/live/plots.py": ("matplotlib",),
    "loadtest/live/web.py": ("flask", "jinja2"),
    "loadtest/plots.py": ("matplotlib",),
    "loadtest/recording.py": ("scheduler",),
    "loadtest/replica.py": ("scheduler",),
    "loadtest/simulator.py": ("scheduler",),
    "cost_model/plots.py": ("matplotlib",),
    "deploy/grafana/drawing.py": ("matplotlib", "numpy"),
    "deploy/grafana/render.py": ("PIL", "matplotlib"),
}
"""File -> what it may import beyond its layer."""

NETWORK = ("asyncio", "ftplib", "http", "smtplib", "socket", "socketserver", "ssl", "urllib")
CLOCK = ("datetime", "sched", "threading", "time", "timeit")
CODE_IN_DATA = ("marshal", "pickle", "shelve")

FORBIDDEN = {
    "scheduler": (*NETWORK, *CLOCK),
    "api/chat": NETWORK,
}
"""Layer -> modules of the standard library that it may not import; CODE_IN_DATA nobody may."""


def layer_of(file: str) -> str:
    """The layer of a path relative to the repository."""
    return "api/chat" if file.startswith("api/chat/") else file.split("/")[0]


def imported_modules(source: str, file: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of each import in `source`, found at the path `file`.

    `from a import b` yields a.b: b may be a module, and if it is a name the prefix a decides.
    """
    package = file.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def violations(source: str, file: str) -> list[str]:
    """What `source`, standing at the path `file`, imports against the table."""
    layer = layer_of(file)
    own_folders = {name.split("/")[0].removesuffix(".py") for name in OWN}
    allowed = (layer.replace("/", "."), *OWN[layer], *EXCEPTIONS.get(file, ()))
    packages = (*THIRD_PARTY[layer], *EXCEPTIONS.get(file, ()))
    found = []
    for line, module in imported_modules(source, file):
        top = module.split(".")[0]
        if top in own_folders:
            legal, rule = within(module, allowed), ", ".join(allowed)
        elif top in sys.stdlib_module_names:
            forbidden = (*FORBIDDEN.get(layer, ()), *CODE_IN_DATA)
            legal, rule = not within(module, forbidden), "the standard library but " + top
        else:
            legal, rule = within(module, packages), ", ".join(packages) or "no package"
        if not legal:
            found.append(f"{file}:{line} imports {module}; {layer} may import {rule}")
    return found


def source_files() -> list[str]:
    """Paths of all source files of the layers that exist, relative to the repository."""
    files = ["winnow.py"]
    for layer in OWN:
        if "/" not in layer and not layer.endswith(".py"):
            folder = ROOT / layer
            found = (f for f in folder.rglob("*.py") if "embedded" not in f.parts)
            files += [file.relative_to(ROOT).as_posix() for file in found]
    return sorted(files)


@pytest.mark.parametrize("file", source_files())
def test_imports_follow_the_table(file: str) -> None:
    found = violations((ROOT / file).read_text(), file)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("kernels/a.py", "from engine import model"),
        ("kernels/a.py", "import msgspec"),
        ("scheduler/a.py", "import torch"),
        ("scheduler/a.py", "import time"),
        ("scheduler/a.py", "from asyncio import Queue"),
        ("scheduler/a.py", "from engine.config import PAGE_TOKENS"),
        ("engine/a.py", "import fastapi"),
        ("engine/a.py", "from api.chat import encoding"),
        ("engine/a.py", "import pickle"),
        ("api/chat/a.py", "from api import server"),
        ("api/chat/a.py", "from .. import server"),
        ("api/chat/a.py", "from scheduler import plan"),
        ("api/chat/a.py", "import http.client"),
        ("api/a.py", "from engine.model_config import ModelConfig"),
        ("api/a.py", "from engine import model"),
        ("api/a.py", "def f():\n    import torch"),
        ("api/a.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("loadtest/a.py", "from scheduler import pages"),
        ("training/a.py", "from api import server"),
        ("cost_model/a.py", "import matplotlib.pyplot"),
        ("winnow.py", "import api.cli"),
        ("engine/a.py", "import winnow"),
    ],
)
def test_a_forbidden_import_is_caught(file: str, source: str) -> None:
    (message,) = violations(source, file)
    assert message.startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("kernels/a.py", "import torch.nn.functional as F\nfrom kernels.norm import rms_norm"),
        ("kernels/a.py", "from .norm import rms_norm"),
        ("scheduler/a.py", "import heapq, msgspec\nfrom scheduler.pages import PagePool"),
        ("engine/a.py", "from kernels.norm import rms_norm\nfrom scheduler import plan"),
        ("api/a.py", "from engine.client import EngineClient\nfrom api.chat import encoding"),
        ("api/chat/a.py", "from scheduler.retention import keeps_reasoning"),
        ("loadtest/simulator.py", "from scheduler import pages"),
        ("cost_model/plots.py", "import matplotlib.pyplot"),
    ],
)
def test_a_legal_import_is_left_alone(file: str, source: str) -> None:
    assert violations(source, file) == []


def test_the_table_has_no_circles() -> None:
    layers = {layer.replace("/", "."): layer for layer in OWN}
    below: set[str] = set()
    while remaining := [layer for layer in OWN if layer not in below]:
        ready = [
            layer
            for layer in remaining
            if all(
                other in below
                for name, other in layers.items()
                if other != layer and any(within(module, (name,)) for module in OWN[layer])
            )
        ]
        assert ready, f"circle among {remaining}"
        below.update(ready)


def module_graph() -> dict[str, set[str]]:
    """Module -> the own modules it imports, at whatever level."""
    modules = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file
        for file in source_files()
    }
    graph = {}
    for module, file in modules.items():
        named = {name for _, name in imported_modules((ROOT / file).read_text(), file)}
        known = {name if name in modules else name.rpartition(".")[0] for name in named}
        graph[module] = (known & modules.keys()) - {module}
    return graph


def test_no_module_imports_itself_through_others() -> None:
    graph = module_graph()
    while leaves := {module for module, imports in graph.items() if not imports & graph.keys()}:
        graph = {module: graph[module] for module in graph.keys() - leaves}
    assert not graph, f"circle among {sorted(graph)}"


API_MODULES = [
    file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for file in source_files()
    if file.startswith("api/")
]


def test_the_api_process_never_loads_torch() -> None:
    imports = ["winnow", "engine.client", "engine.messages", *API_MODULES]
    code = f"import sys, {', '.join(imports)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
