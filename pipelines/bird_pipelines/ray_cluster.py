"""A Ray cluster: one that is there, or one of this machine alone. `ray` is imported here and nowhere else.

Nothing is reported to Ray's authors and no dashboard is started. Token authentication stays as the cluster has it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bird.errors import UsageError

__all__ = ["ray_cluster", "require_ray"]

ANSWER_SECONDS = 5.0


@contextmanager
def ray_cluster(address: str | None, cpus: int) -> Iterator[Any]:
    """The module `ray`, connected: to `address`, else to RAY_ADDRESS, else to a Ray of this machine with at least `cpus`
    slots for workers. What was connected before stays connected. Raises UsageError."""
    ray = require_ray(address)
    if ray.is_initialized():
        yield ray
        return
    place = _place(address)
    given: dict[str, Any] = {"address": place, "log_to_driver": False, "logging_level": "ERROR"}
    if place == "local":
        given |= {"num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(**given)
    except Exception as error:
        raise _unusable(address, str(error).strip().split("\n")[0] or type(error).__name__) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray's own would end this process before it has said anything
    try:
        yield ray
    finally:
        ray.shutdown()


def require_ray(address: str | None) -> Any:
    """The module `ray`, not connected yet. Raises UsageError where it is not installed, or nobody answers at the address:
    Ray itself tries for many minutes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise UsageError(
            where="--engine ray",
            found="no package ray",
            wanted="Ray 2.60 or newer on every machine",
            fix='pip install "bird-distill[ray]"',
        ) from None
    if not ray.is_initialized() and (place := _place(address)) != "local":
        _require_answer(ray, address, place)
    return ray


def _place(address: str | None) -> str:
    """HOST:PORT, ray://HOST:PORT, or `local` for a Ray of this machine. Raises UsageError where `auto` finds none."""
    asked = address or os.environ.get("RAY_ADDRESS") or "local"
    if asked != "auto":
        return asked
    # What Ray means by it: RAY_ADDRESS, a head of this machine, or the cluster that `ray start` joined last.
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise _unusable(address, "no cluster that this machine belongs to") from None


def _require_answer(ray: Any, address: str | None, place: str) -> None:
    host, _, port = place.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        said = "no HOST:PORT" if isinstance(error, ValueError) else getattr(error, "strerror", None) or "no answer"
        raise _unusable(address, f"{place}: {said}") from None
    if place.startswith("ray://"):
        return
    try:
        ray._raylet.GcsClient(address=place)  # it gives up within a minute; ray.init repeats this 20 times
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise _unusable(address, f"{place}: something answers, but not as a Ray does ({said})") from None


def _unusable(address: str | None, found: str) -> UsageError:
    of_environment = os.environ.get("RAY_ADDRESS")
    if address is None and not of_environment:
        return UsageError(
            where="--engine ray",
            found=found,
            wanted="a Ray of this machine that starts",
            fix="start one with `ray start --head`, which says what is wrong, and give --address auto",
        )
    return UsageError(
        where=f"RAY_ADDRESS={of_environment}" if address is None else f"--address {address}",
        found=found,
        wanted="the HOST:PORT of a running Ray of the same version",
        fix="start it with `ray start --head`, correct the address, or leave it out for a Ray of this machine",
    )
