"""The teacher that a command names, opened, with every option of the command that concerns it."""

from __future__ import annotations

from bird.teachers import Service, Teacher, load_teacher, open_service, takes_of
from bird.teachers.claims import require_takers
from bird_pipelines.config import PrecomputeConfig
from bird_pipelines.progress import tell

__all__ = ["open_teacher"]


def open_teacher(config: PrecomputeConfig) -> Teacher | Service:
    """A service where the name is an address, else a teacher that runs here. What it assumes is said on stderr.

    Raises UsageError for an option that it cannot honour, and what `load_teacher` and `open_service` raise.
    """
    address = "://" in config.teacher
    # An address may hold a key: it is repeated nowhere.
    require_takers("a service" if address else config.teacher, config.asked(), takes_of(config.teacher))
    teacher: Teacher | Service
    if address:
        teacher = open_service(
            config.teacher,
            image_size=config.image_size,
            kind=config.kind,
            output=config.output,
            key_env=config.api_key_env,
            per_minute=config.requests_per_minute,
        )
    else:
        teacher = load_teacher(
            config.teacher,
            weights=config.weights,
            device=config.device,
            precision=config.precision,
            image_size=config.image_size,
            kind=config.kind,
            output=config.output,
            mean=config.mean,
            std=config.std,
            range_=config.range,
        )
    for what, told in teacher.notes.items():
        tell(f"{teacher.name}, {what}: {told}")
    return teacher
