"""What the stages share: the device, sizes, and a clock that waits for it."""

import os
import statistics
import time

import torch

__all__ = ["DEVICE", "ON_GPU", "SMALL", "held_and_peak", "milliseconds", "name_of_device"]

DEVICE = torch.device(os.environ.get("BIRD_DEVICE", "cuda"))
ON_GPU = DEVICE.type == "cuda"
SMALL = bool(os.environ.get("BIRD_SMALL"))


def name_of_device():
    """The card's name, or that it is a CPU."""
    return torch.cuda.get_device_name(DEVICE) if ON_GPU else f"{os.cpu_count()} CPU cores"


def milliseconds(work, rounds, warmup=3):
    """Median time of `work()`, by CUDA events on a GPU."""
    for _ in range(warmup):
        work()
    found = []
    for _ in range(rounds):
        if ON_GPU:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last))
        else:
            began = time.perf_counter()
            work()
            found.append(1000 * (time.perf_counter() - began))
    return statistics.median(found)


def held_and_peak(work):
    """MiB of the GPU's memory that `work()` needs beside what was held before; None on a CPU."""
    if not ON_GPU:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
