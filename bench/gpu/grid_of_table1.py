"""Table 1 at the size of CelebA: 90 adapters in stacks, extrapolated from some steps as bench/grid.py does."""

import time

import grid
import torch
from here import DEVICE, ON_GPU, SMALL, name_of_device
from results import save

DIMS, STEPS = ([512, 768, 1024], 40) if not SMALL else ([16], 2)
COLUMNS = ["width", "method", "models at once", "ms a step and model", "minutes of 5 seeds"]


def now():
    """Seconds, once the device has done what it was given."""
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def main():
    """Row by row; the sum last."""
    if SMALL:
        grid.TRAIN, grid.META, grid.TEST = 512, 128, 128
    rows, total = [], 0.0
    notes = [
        f"{name_of_device()}; extrapolated from {STEPS} steps of each half of a run, one evaluation and one end of a run. "
        "Wanted: 90 runs in 4 minutes."
    ]
    for dim in DIMS:
        for method in grid.METHODS_OF_TABLE:
            found = grid.measure(dim, [method], STEPS, True, "fp32", str(DEVICE), now)[method]
            minutes = grid.SEEDS * grid.sum_of(found) / 60
            total += minutes
            row = {"width": dim, "method": method, "models at once": found["models"]}
            rows.append(row | {"ms a step and model": 1000 * found["warm"], "minutes of 5 seeds": minutes})
            save("gpu-grid", "Table 1 at CelebA's size on a GPU, fp32.", COLUMNS, rows, notes)
    runs = grid.SEEDS * len(grid.METHODS_OF_TABLE) * len(DIMS)
    rows.append({"width": "all", "method": f"{runs} runs", "minutes of 5 seeds": total})
    save("gpu-grid", "Table 1 at CelebA's size on a GPU, fp32.", COLUMNS, rows, notes)


if __name__ == "__main__":
    main()
