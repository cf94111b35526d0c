"""`python -m bird_pipelines.cli` is `bird`."""

from bird_pipelines.cli.commands import main

main()
