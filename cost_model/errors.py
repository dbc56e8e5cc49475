"""The one error of this folder."""


class CostError(ValueError):
    """A question the cost model cannot answer; the message names the value and what is allowed."""
