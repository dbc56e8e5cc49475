"""api.options: flags and files out of the config structs, without a second book-keeping."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from api.cli import GROUPS
from api.config import ChatConfig, ServerConfig
from api.options import OTHER, add_options, build, field_docs, parse_bytes, read_values, show_bytes
from engine.client import ConfigError, EngineConfig

STRUCTS = (EngineConfig, ServerConfig, ChatConfig)
FIELDS = [name for struct in STRUCTS for name in struct.__struct_fields__]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_options(made, STRUCTS, GROUPS)
    return made


def test_every_field_is_explained_in_a_group() -> None:
    docs = {name: doc for struct in STRUCTS for name, doc in field_docs(struct).items()}
    assert [name for name in FIELDS if not docs.get(name)] == []
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(FIELDS)


def test_a_new_field_shows_up_by_itself() -> None:
    made = argparse.ArgumentParser()
    add_options(made, STRUCTS, {"server": ("host",)})
    help_ = made.format_help()
    assert OTHER in help_
    assert all(f"--{name.replace('_', '-')}" in help_ for name in FIELDS)


def test_without_flags_the_structs_keep_their_defaults() -> None:
    values = read_values(parser().parse_args([]), STRUCTS)
    assert values == {}
    assert build(EngineConfig, values) == EngineConfig()
    assert build(ServerConfig, values) == ServerConfig()


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'max-model-len = 8192\nport = 9000\nkv_cache_bytes = "2MiB"\n'
        'enable-prefix-caching = false\nserved-model-name = ["deepseek-a", "b"]\n'
    )
    arguments = ["--config", str(file), "--port", "9001", "--keep-alive-s", "2"]
    values = read_values(parser().parse_args(arguments), STRUCTS)
    engine, server = build(EngineConfig, values), build(ServerConfig, values)
    assert (engine.max_model_len, engine.kv_cache_bytes) == (8192, 2**21)
    assert not engine.enable_prefix_caching
    assert (server.port, server.keep_alive_s) == (9001, 2.0)
    assert server.served_model_name == ("deepseek-a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown key 'prot'"),
        ("port = ", "cannot be read"),
        ('kv-cache-bytes = "much"', "no size"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_values(parser().parse_args(["--config", str(file)]), STRUCTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": "x"}, "--port: Expected `int`"),
        ({"port": 65536}, "65536"),
        ({"max_body_bytes": 0}, "max-body-bytes"),
        ({"keep_alive_s": 0}, "keep-alive-s"),
        ({"log_level": "loud"}, "--log-level"),
    ],
)
def test_values_are_checked_once_at_the_edge(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ServerConfig, values)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64", 64), ("16MiB", 2**24), ("16mib", 2**24), ("4G", 4 * 10**9), ("1.5 GiB", 3 * 2**29)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1TiBs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_bytes(text)


def test_sizes_for_people() -> None:
    assert [show_bytes(n) for n in (656, 2**24, 3 * 2**29)] == ["656 B", "16 MiB", "1.5 GiB"]
