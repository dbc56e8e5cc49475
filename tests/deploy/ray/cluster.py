"""A Ray cluster of this one machine with the application in it, until standard input ends.

    .venv-ray/bin/python -m tests.deploy.ray.cluster PORT ARGUMENT=VALUE ...

Runs in Ray's environment and prints "up" when the application answers. It does what `serve run`
does, without the dashboard, which takes longer to start than a busy test machine allows.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray._private import services
from ray.cluster_utils import Cluster

from deploy.ray.app import Arguments, build

AGENT_PORTS = (
    "dashboard_agent_listen_port",
    "metrics_agent_port",
    "metrics_export_port",
    "runtime_env_agent_port",
)
NODE_PATIENCE_S = 240.0
OBJECT_STORE_BYTES = 256 * 2**20


def main(arguments: Sequence[str]) -> None:
    """Starts it all, waits, and stops it all."""
    port, *told = arguments
    cluster = start_ray()
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    values = dict(each.split("=", 1) for each in told)
    serve.run(build(Arguments(**values)), name="winnow", route_prefix="/")
    print("up", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def start_ray() -> Cluster:
    """Returns the cluster, however long it takes to start.

    Ray gives its own processes 15 s to say which ports they took (so they are told), and 30 s to
    register: neither is enough on a machine that runs tests on every core.
    """
    get_node = services.get_node

    def wait_for_node(*arguments: Any) -> Any:
        deadline_s = time.monotonic() + NODE_PATIENCE_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.5)

    services.get_node = wait_for_node
    ports = dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))
    node = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "no_monitor": True}
    cluster = Cluster(
        initialize_head=True,
        shutdown_at_exit=True,
        head_node_args=node | {"include_dashboard": False} | ports,
    )
    ray.init(address=cluster.address)
    return cluster


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody has now."""
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


if __name__ == "__main__":
    main(sys.argv[1:])
