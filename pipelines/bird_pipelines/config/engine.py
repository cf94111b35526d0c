"""Who computes the shards of a cache: this process, several of them, or the machines of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, final

from bird.errors import UsageError
from bird_pipelines.config.option import Option, declared

__all__ = ["Engine"]

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "local": ("processes",),
    "ray": ("address", "actors", "gpus_per_actor"),
    "slurm": ("tasks", "set"),
}
"""Which options each engine has."""


@final
@dataclass(frozen=True, kw_only=True)
class Engine:
    """Who calls `write_shards`. Nothing here changes a cache or its fingerprint."""

    panel: ClassVar[str | None] = "Several processes or machines"
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    engine: Annotated[
        Literal["local", "ray", "slurm"],
        Option("Who computes: local (this machine), ray or slurm. All workers must see --out under the same name."),
    ] = "local"
    processes: Annotated[
        int, Option("local: processes side by side. Each has a teacher and its share of the cores.", ge=1)
    ] = 1
    address: Annotated[
        str | None, Option("ray: HOST:PORT of a cluster, or auto.", default="RAY_ADDRESS, else a Ray on this machine")
    ] = None
    actors: Annotated[
        int | None, Option("ray: workers. Each has a teacher.", default="as many as the cluster has room for", ge=1)
    ] = None
    gpus_per_actor: Annotated[float, Option("ray: GPUs of each worker; .5 puts two on one.", ge=0)] = 0.0
    tasks: Annotated[int, Option("slurm: jobs at a time.", ge=1)] = 4
    set: Annotated[
        Mapping[str, str | int | float | bool], Option("slurm: options of sbatch, by name.", hidden=True)
    ] = field(default_factory=dict)

    @property
    def spreads(self) -> bool:
        """Whether others than this process compute."""
        return self.engine != "local" or self.processes > 1

    def require_own(self) -> None:
        """Raise UsageError for an option of another engine."""
        usual = {each.field: each.default for each in declared(Engine)}
        for engine, names in OPTIONS.items():
            for name in names:
                if engine != self.engine and getattr(self, name) != usual[name]:
                    raise UsageError(
                        where=f"--{name.replace('_', '-')}",
                        found=f"--engine {self.engine}",
                        wanted=f"--engine {engine}",
                        fix=f"give --engine {engine}, or leave the option out",
                    )
