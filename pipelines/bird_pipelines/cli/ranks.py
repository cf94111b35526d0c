"""The command line under torchrun: which commands have a use there, and one panel for what all processes say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from bird.launch import launched

__all__ = ["exit_of", "leave_word", "listen_no_more", "refuse_command", "to_say"]

TOGETHER = ("distill", "train", "evaluate")
"""what several processes do together"""


def refuse_command(name: str | None) -> None:
    """Raise UsageError for a command that several processes would each do, one over the other."""
    from bird.errors import UsageError

    if launched().world > 1 and name not in (None, *TOGETHER):
        raise UsageError(
            where="torchrun",
            found=f"`bird {name}` in {launched().world} processes",
            wanted="one student that they train together: " + ", ".join(f"`bird {each}`" for each in TOGETHER),
            fix=f"run `bird {name}` without torchrun",
        )


def listen_no_more() -> None:
    """An error is being told: torchrun, which stops all processes when one has ended, shall not cut it short."""
    if launched().world > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def exit_of(code: int) -> dict[str, str]:
    """The line of a panel that says the exit code: torchrun's own is 1, whatever ours was."""
    launch = launched()
    return {"exit code": f"{code} (rank {launch.rank} of {launch.world})"} if launch.world > 1 else {}


def leave_word(title: str, lines: Mapping[str, str]) -> None:
    """Give torchrun the words of the panel. It ends with a traceback of its own, whose last lines then say the cause."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if launched().world == 1 or not file:
        return
    text = "\n".join([title, *(f"{name}: {said}" for name, said in lines.items())])
    word = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": word}), encoding="utf-8")


def to_say(lines: Mapping[str, str], *, follows: bool) -> bool:
    """Whether this process is to say it: what another process of this torchrun has said is not said again, and what only
    `follows` from another's error not beside it."""
    if launched().world == 1:
        return True
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's stubs lack it

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        attempt = f"bird/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        if follows:
            return store.add(f"{attempt}/causes", 0) + store.add(f"{attempt}/follows", 1) == 1
        store.add(f"{attempt}/causes", 1)
        return store.add(f"{attempt}/{sha256(repr(lines).encode()).hexdigest()}", 1) == 1
    except (ImportError, KeyError, ValueError, RuntimeError) as error:
        print(f"rank {launched().rank}: {error}", file=sys.stderr)  # nobody knows what the others say
        return True
