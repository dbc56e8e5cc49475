"""The application: `serve run deploy.ray.app:build key=value ...`, or deploy/ray/serve.yaml."""

# Ray looks for the model in the annotation itself, so annotations must not be strings here.

import os
import shlex
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.deployment import Application

from deploy.ray.forwarding import Patience
from deploy.ray.ingress import Ingress, Reading
from deploy.ray.replica import Replica
from deploy.ray.server import ROOT

HEALTH_PERIOD_S = 2.0
"""Three failures replace a replica."""
STOP_MARGIN_S = 10.0


class Arguments(BaseModel):
    """What the application is built from; frozen, checked, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: tuple[str, ...] = ()
    """Options of `winnow serve`, the same for each replica; as one string they are split as a shell
    does."""
    python: str = os.environ.get("WINNOW_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    """Interpreter of the environment that Winnow is installed in, on every machine."""
    gpus_per_replica: float = Field(0, ge=0)
    cpus_per_replica: float = Field(1, ge=0)
    """What Ray sets aside for a replica; it is placed where both are free."""
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    """Equal: that many, and no autoscaling."""
    target_ongoing_requests: float = Field(32, gt=0)
    """Requests per replica, running and waiting, that autoscaling aims at."""
    upscale_delay_s: float = Field(30, ge=0)
    downscale_delay_s: float = Field(600, ge=0)
    """How long more or fewer replicas must have been wanted. One that leaves takes its cache along.
    """
    max_ongoing_requests: int = Field(256, ge=1)
    """Requests that a replica has at a time; further ones wait at the ingress."""
    max_queued_requests: int = Field(1024, ge=-1)
    """Requests that wait there; -1: any number."""
    ingress_replicas: int = Field(1, ge=1)
    """Each has an affinity table of its own."""
    routing_timeout_s: float = Field(60, gt=0)
    """After which a request that no replica has taken gets an error."""
    drain_s: float = Field(600, gt=0)
    """Time for running answers before a replica that is to leave is stopped."""
    stop_grace_s: float = Field(45, gt=0)
    """Time for a server to stop: its --drain-delay-s, its --shutdown-grace-s and half a minute."""
    max_body_bytes: int = Field(16 * 2**20, ge=1)
    body_timeout_s: float = Field(60, gt=0)
    """As those of `winnow serve`; bodies are read at the ingress."""
    capacity_blocks: int = Field(262_144, ge=1)
    least_prefix_bytes: int = Field(256, ge=1)
    imbalance_requests: int = Field(8, ge=0)
    """Bounds of an AffinityTable."""

    @field_validator("options", mode="before")
    @classmethod
    def split(cls, options: Any) -> Any:
        """Splits options that came as one string."""
        return tuple(shlex.split(options)) if isinstance(options, str) else options

    @model_validator(mode="after")
    def check(self) -> "Arguments":
        """Refuses what contradicts itself, or the way replicas are reached."""
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}; it must be at least {self.min_replicas}"
            )
        for option in self.options:
            if option.partition("=")[0] in ("--host", "--port", "--ssl-certfile", "--ssl-keyfile"):
                raise ValueError(f"{option}: a replica's server is reached by its replica only")
        return self


def build(arguments: Arguments) -> Application:
    """Returns the application."""
    scaled: dict[str, Any] = {"num_replicas": arguments.min_replicas}
    if arguments.max_replicas > arguments.min_replicas:
        autoscaling = AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=arguments.target_ongoing_requests,
            upscale_delay_s=arguments.upscale_delay_s,
            downscale_delay_s=arguments.downscale_delay_s,
        )
        scaled = {"autoscaling_config": autoscaling}
    replicas = serve.deployment(
        Replica,
        name="Replica",
        **scaled,
        max_ongoing_requests=arguments.max_ongoing_requests,
        max_queued_requests=arguments.max_queued_requests,
        ray_actor_options={
            "num_cpus": arguments.cpus_per_replica,
            "num_gpus": arguments.gpus_per_replica,
        },
        health_check_period_s=HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=arguments.drain_s,
        request_router_config=RequestRouterConfig(
            request_router_class="deploy.ray.router:PrefixAffinityRouter",
            request_router_kwargs={
                "capacity_blocks": arguments.capacity_blocks,
                "least_prefix_bytes": arguments.least_prefix_bytes,
                "imbalance_requests": arguments.imbalance_requests,
            },
        ),
    ).bind((arguments.python, "-m", "winnow", "serve", *arguments.options), arguments.stop_grace_s)
    # Tries: one per replica there can be, so that one that does not take it meets no other twice.
    patience = Patience(arguments.routing_timeout_s, arguments.max_replicas + 1)
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=arguments.ingress_replicas,
        max_ongoing_requests=arguments.max_replicas * arguments.max_ongoing_requests
        + max(arguments.max_queued_requests, 0)
        + 1000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=arguments.drain_s + STOP_MARGIN_S,
    )
    reading = Reading(arguments.max_body_bytes, arguments.body_timeout_s)
    return ingress.bind(replicas, patience, reading)
