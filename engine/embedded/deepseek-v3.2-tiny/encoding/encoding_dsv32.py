"""Prompt text constants of the embedded checkpoint: data for the server, which reads them with `ast`.

The layout of the prompt is that of DeepSeek-V3.2; the wording of the tools block is Winnow's own and
short, because the embedded model was trained on a CPU and each prompt token costs training time.
Only string constants live here: nothing in this file is ever executed by the server.
"""

bos_token: str = "<｜begin▁of▁sentence｜>"
eos_token: str = "<｜end▁of▁sentence｜>"
thinking_start_token: str = "<think>"
thinking_end_token: str = "</think>"
dsml_token: str = "｜DSML｜"

system_msg_template: str = "{content}"
user_msg_template: str = "<｜User｜>{content}<｜Assistant｜>"
assistant_msg_template: str = "{reasoning}{content}{tool_calls}<｜end▁of▁sentence｜>"
thinking_template: str = "{reasoning_content}"

tool_call_template: str = '<{dsml_token}invoke name="{name}">\n{arguments}\n</{dsml_token}invoke>'
tool_calls_template: str = (
    "<{dsml_token}function_calls>\n{tool_calls}\n</{dsml_token}function_calls>"
)
tool_output_template: str = "\n<result>{content}</result>"

response_format_template: str = (
    "## Response Format:\n\nAnswer with JSON that follows this schema:\n{schema}"
)

TOOLS_SYSTEM_TEMPLATE: str = """## Tools

You can call tools. A call is a <{dsml_token}function_calls> block:
<{dsml_token}function_calls>
<{dsml_token}invoke name="$FUNCTION_NAME">
<{dsml_token}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{dsml_token}parameter>
...
</{dsml_token}invoke>
</{dsml_token}function_calls>
Text has string="true", JSON has string="false".
In thinking mode, think again after each result:
<function_results>
...
</function_results>

{thinking_start_token}...{thinking_end_token}

<functions>
{tool_schemas}
</functions>
"""
