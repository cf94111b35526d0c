"""Progress that a person can read, and stopping at a point from which the work can be resumed."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from bird.launch import launched

__all__ = ["Advance", "Interrupted", "progress", "stop_requests", "tell", "tell_remarks"]

LINE_SECONDS = 10.0
Advance = Callable[..., None]
"""advance(count, note=""): so many more units are done."""


@final
class Interrupted(Exception):
    """The work was stopped by Ctrl-C or SIGTERM at a point from which the same command resumes."""


def tell(line: str) -> None:
    """A line for who waits, on stderr. Of the processes of one run the first tells it."""
    if launched().rank:
        return
    print(line, file=sys.stderr, flush=True)


def tell_remarks(remarks: Iterable[str]) -> None:
    """A line on stderr for each thing that a person should know before the work begins."""
    for remark in remarks:
        tell(f"note: {remark}")


@contextmanager
def progress(what: str, unit: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar with rate and time left if stdout is a terminal, else a line every ten seconds. Both go to stderr. Of the
    processes of one run the first shows it."""
    if launched().rank:
        yield lambda count, note="": None
        return
    with (_bar if sys.stdout.isatty() else _lines)(what, unit, total, done) as advance:
        yield advance


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C or SIGTERM only makes the yielded function true; the second interrupts at once."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield asked.is_set
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(what: str, unit: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done, note="", rate="")

        def advance(count: int, note: str = "") -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, note=note, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def _lines(what: str, unit: str, total: int, done: int) -> Iterator[Advance]:
    begun, begun_at, last = time.monotonic(), done, time.monotonic()

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < LINE_SECONDS and done < total:
            return
        last = now
        rate = (done - begun_at) / max(now - begun, 1e-9)
        left = (total - done) / rate if rate else 0.0
        line = f"{what}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s left"
        print(f"{line}  {note}".rstrip(), file=sys.stderr, flush=True)

    yield advance
