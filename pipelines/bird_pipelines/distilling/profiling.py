"""Where a training step's time goes: shares of a run, always; a trace of a few steps, for `--profile`.

A step is a sequence of parts, so the clock only records when the next part begins. Wrappers around the learner call it;
the methods do not know of it.

| part | from | to |
|---|---|---|
| data | a batch is asked for (also the meta batch, within the step) | it is there |
| forward | the train batch is there; the gate has moved | the student descends |
| meta | the meta batch is there | the gate has moved |
| backward | the student descends | its weights have moved (backward pass and optimiser) |
| other | the rest: reading the losses, progress, checkpoints | |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, final

import torch

from bird.methods.base import Learner

__all__ = ["PARTS", "TRACE", "Clock", "Tracer"]

PARTS = ("data", "forward", "meta", "backward", "other")
TRACE = "trace.json"
WARM_STEPS, TRACED_STEPS = 3, 5
Given = ParamSpec("Given")
Answer = TypeVar("Answer")


@final
class Clock:
    """Seconds a part, of the steps so far. It costs a few microseconds a step.

    On a GPU the host runs ahead of what it measures: with `wait` each mark waits for the device first, and without it
    nothing is counted there.
    """

    def __init__(self, device: torch.device, *, wait: bool = False) -> None:
        self._device = device
        self._wait = wait and device.type == "cuda"
        self._counts = wait or device.type == "cpu"
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "other", 0.0
        self._range: Any = None
        self.named = False
        """whether parts are ranges of a trace, too"""

    def start(self) -> None:
        """Steps begin, or go on after something else: what was before is nobody's."""
        self._part, self._since = "other", time.perf_counter()

    def enter(self, part: str) -> None:
        """From now on time belongs to `part`."""
        if part == self._part and self._range is not None:
            return
        if self._wait:
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._counts:
            self.seconds[self._part] += now - self._since
        self._part, self._since = part, now
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self.named:
            self._range = torch.profiler.record_function(part)
            self._range.__enter__()

    def around(self, part: str, do: Callable[Given, Answer], after: str) -> Callable[Given, Answer]:
        """`do`, whose time belongs to `part`; after it begins `after`."""

        def timed(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
            self.enter(part)
            found = do(*args, **kwargs)
            self.enter(after)
            return found

        return timed

    def watch(self, learner: Learner) -> None:
        """Be told when `learner` descends and when its gate has moved."""
        learner.descend = self.around("backward", learner.descend, "other")  # type: ignore[method-assign]  # this one learner's
        learner.move_gate = self.around("meta", learner.move_gate, "forward")  # type: ignore[method-assign]  # this one learner's

    def shares(self) -> dict[str, float] | None:
        """The parts' shares of the time, rounded; None where nothing was counted."""
        total = sum(self.seconds.values())
        return {part: round(self.seconds[part] / total, 4) for part in PARTS} if total else None


@final
class Tracer:
    """A Chrome trace of a few steps, written into the run's folder; it can be opened at chrome://tracing or in Perfetto.

    The steps traced are the first after `WARM_STEPS` that count: a run's last kind of step, where BIRD's gate moves.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock, self._seen = folder, clock, 0
        self._profiler: Any = None

    def before_step(self, counts: bool) -> None:
        """A step begins; `counts` says whether it is of the kind to trace."""
        self._seen += counts
        if self._profiler is None and counts and self._seen == WARM_STEPS + 1:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
            self._clock.named = True
        elif self._profiler is not None and self._seen > WARM_STEPS + TRACED_STEPS:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is going on."""
        if self._profiler is None:
            return
        self._clock.named = False
        self._clock.enter("other")
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self._folder / TRACE))
        self._profiler = None
