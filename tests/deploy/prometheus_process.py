"""A real Prometheus on a free port, scraping one server with our rules."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.promql import DEPLOY

RATE_INTERVAL = "10s"
"""What Grafana would make of a scrape a second, and a little more."""
VARIABLES = {"$__rate_interval": RATE_INTERVAL, "$model": ".+", "$instance": ".+"}


class Prometheus:
    """Started in a context; `folder` takes its configuration and its data."""

    def __init__(self, folder: Path, target: str) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        rules = [str(DEPLOY / "prometheus" / name) for name in ("recording.yml", "alerts.yml")]
        shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        (job,) = shipped["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        config = folder / "prometheus.yml"
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        own_rules = []
        for file in rules:
            # The same rules, evaluated as often as the test needs it.
            own = folder / Path(file).name
            loaded = yaml.safe_load(Path(file).read_text())
            for group in loaded["groups"]:
                group["interval"] = "1s"
            own.write_text(yaml.safe_dump(loaded))
            own_rules.append(str(own))
        config.write_text(
            yaml.safe_dump({"global": every, "rule_files": own_rules, "scrape_configs": [job]})
        )
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=self._log,
            stdout=self._log,
        )
        self.url = f"http://{address}"
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", timeout=30)
        self.begin_s = time.time()

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(timeout=60)
        self._log.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Returns the data of an answer; an httpx.TransportError while it starts."""
        assert self._process.poll() is None, "Prometheus ended; see its log"
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def has_data(self, query: str) -> bool:
        """Whether a query with a board's variables gave any number since the start."""
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        assert "$" not in query, query
        found = self.get(
            "/query_range", query=query, start=self.begin_s, end=time.time(), step="1s"
        )
        return any(
            not math.isnan(float(value)) for one in found["result"] for _, value in one["values"]
        )

    def label_values(self, series: str, label: str) -> list[str]:
        """Returns what a board's variable would offer."""
        for name, value in VARIABLES.items():
            series = series.replace(name, value)
        values: list[str] = self.get(f"/label/{label}/values", **{"match[]": series})
        return values
