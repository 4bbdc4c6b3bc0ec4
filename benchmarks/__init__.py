"""Measures connpool against other pools, in one run on one machine: `python -m benchmarks --help`.

Reading order: `peers` and `async_peers` (who takes part, and how each is configured), `worker` (each
contender runs in a process of its own), then one file per benchmark, each with its cases, what a worker
does, and what is demanded of the figures.  `report` makes a table of a results file, `plots` the pictures.
"""
