from pathlib import Path

import pytest

from api.chat.template import MODULE_PATH, Piece, Template, TemplateError

SOURCE = '''
TOOLS_SYSTEM_TEMPLATE: str = """## Tools
<{dsml_token}function_calls>
{thinking_start_token}...{thinking_end_token}
{tool_schemas}
"""
response_format_template = "## Response Format:\\n\\nFollow it:\\n{schema}"
'''


def test_blocks_are_filled() -> None:
    template = Template.from_source(SOURCE)
    schemas = [{"name": "f", "b": 1, "a": "é"}, {"name": "g"}]
    assert template.tools_block(schemas) == (
        "## Tools\n<｜DSML｜function_calls>\n<think>...</think>\n"
        '{"name": "f", "b": 1, "a": "é"}\n{"name": "g"}\n'
    )
    assert (
        template.response_format_block({"type": "object"})
        == '## Response Format:\n\nFollow it:\n{"type": "object"}'
    )


def test_only_the_markers_are_control() -> None:
    pieces = Template.from_source(SOURCE).tools_pieces([{"name": "<think>"}])
    assert [piece.text for piece in pieces if piece.control] == ["｜DSML｜", "<think>", "</think>"]
    assert Piece('{"name": "<think>"}', False) in pieces


def test_markers_written_out_in_the_text_are_control_too() -> None:
    template = Template("see <think> in {tool_schemas}")
    assert template.tools_pieces([]) == [
        Piece("see ", False),
        Piece("<think>", True),
        Piece(" in ", False),
    ]


@pytest.mark.parametrize("text", ["{dsml_token}", "{tool_schemas}", "{", "}}", "{{x}}", "{schema}"])
def test_caller_text_is_substituted_once(text: str) -> None:
    template = Template.from_source(SOURCE)
    assert f'{{"name": "{text}"}}' in template.tools_block([{"name": text}])
    assert f'{{"name": "{text}"}}' in template.response_format_block({"name": text})


@pytest.mark.parametrize(
    "tools",
    [
        "{tool_schemas} {unknown}",
        "{tool_schemas} {schema}",
        "{tool_schemas} {{dsml_token}}",
        "{tool_schemas} {}",
        "{tool_schemas} { x }",
        "{tool_schemas} }",
        "{tool_schemas} {tool_schemas.__class__}",
        "{tool_schemas!r}",
        "{tool_schemas} {tool_schemas}",
        "no placeholder",
    ],
)
def test_odd_placeholders_are_refused(tools: str) -> None:
    with pytest.raises(TemplateError, match="TOOLS_SYSTEM_TEMPLATE"):
        Template(tools)
    with pytest.raises(TemplateError, match="response_format_template"):
        Template(None, tools.replace("tool_schemas", "schema").replace("{schema} {schema}", "{x}"))


def test_the_file_is_never_executed(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    source = (
        f"import pathlib\npathlib.Path({str(witness)!r}).touch()\n"
        f"def effect(): pathlib.Path({str(witness)!r}).touch()\n"
        "effect()\n" + SOURCE
    )
    path = tmp_path / MODULE_PATH
    path.parent.mkdir()
    path.write_text(source, encoding="utf-8")
    template = Template.from_folder(tmp_path)
    assert template.tools_block([{"name": "f"}]).startswith("## Tools")
    assert not witness.exists()
    exec(compile(source, str(path), "exec"), {})
    assert witness.exists(), "the witness must be able to fail"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def", "not Python source"),
        ("x = '\0'", "not Python source"),
        ("TOOLS_SYSTEM_TEMPLATE = f'{tool_schemas}'", "not a string constant"),
        ("TOOLS_SYSTEM_TEMPLATE = open('/etc/passwd').read()", "not a string constant"),
        ("TOOLS_SYSTEM_TEMPLATE: str", "not a string constant"),
        ("dsml_token = '｜X｜'", "dsml_token"),
        ("thinking_end_token: str = '</thought>'", "thinking_end_token"),
    ],
)
def test_bad_modules(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Template.from_source(source)


def test_constants_inside_functions_do_not_count() -> None:
    template = Template.from_source("def f():\n    TOOLS_SYSTEM_TEMPLATE = '{tool_schemas}'\n")
    with pytest.raises(TemplateError):
        template.tools_block([])


def test_a_folder_without_texts_fails_only_when_they_are_needed(tmp_path: Path) -> None:
    template = Template.from_folder(tmp_path)
    with pytest.raises(TemplateError, match="TOOLS_SYSTEM_TEMPLATE"):
        template.tools_block([{"name": "f"}])
    with pytest.raises(TemplateError, match="response_format_template"):
        template.response_format_block({})


def test_embedded_checkpoint_ships_both_texts(template: Template) -> None:
    block = template.tools_block([{"name": "get_date"}])
    assert block.startswith("## Tools\n")
    assert block.endswith('<functions>\n{"name": "get_date"}\n</functions>\n')
    assert "{" not in block.replace('{"name": "get_date"}', "")
    assert template.response_format_block({"a": 1}).endswith('\n{"a": 1}')
