"""The special strings of the DeepSeek-V3.2 prompt format. Ids are looked up, never written down."""

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK_START = "<think>"
THINK_END = "</think>"

DSML = "｜DSML｜"
"""The marker inside every tag of a tool call. A token of its own, but not flagged special."""

CONTROL_MARKERS = (BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END, DSML)
"""Every string that Winnow itself writes as one token."""
