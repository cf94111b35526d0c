"""What the machine is: card, driver, libraries, memory."""

import os
import platform
import subprocess

import torch
from here import DEVICE, ON_GPU, name_of_device
from results import save


def driver():
    """The driver's version, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main():
    """One row."""
    row = {"device": name_of_device(), "python": platform.python_version(), "torch": torch.__version__}
    row |= {"CPU cores": len(os.sched_getaffinity(0))}
    if ON_GPU:
        about = torch.cuda.get_device_properties(DEVICE)
        row |= {"driver": driver(), "CUDA": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())}
        row |= {"GPU memory, GiB": about.total_memory / 2**30, "multiprocessors": about.multi_processor_count}
    save("gpu-machine", "The machine.", [*row], [row])


if __name__ == "__main__":
    main()
