"""`python -m bird_pipelines` is `bird`: `torchrun --nproc-per-node 4 -m bird_pipelines distill ...`."""

from bird_pipelines.cli import main

main()
