"""Writes the boards as Grafana reads them: `python -m deploy.grafana.generate`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import cache, cost, engine, latency, overview

BOARDS = {
    "overview": overview.make,
    "latency": latency.make,
    "cache": cache.make,
    "cost": cost.make,
    "engine": engine.make,
}
"""File name -> board."""
FOLDER = Path(__file__).parent / "dashboards"


def rendered() -> dict[str, str]:
    """Returns file name -> JSON of each board; the same for the same sources."""
    return {
        f"{name}.json": json.dumps(make().build(), cls=JSONEncoder, sort_keys=True, indent=1) + "\n"
        for name, make in BOARDS.items()
    }


def main() -> None:
    """Writes every board into FOLDER."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
