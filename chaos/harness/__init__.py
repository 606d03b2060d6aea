"""Real training processes on one machine: nodes, ranks, their shared state and records, and how they end.

Used by the random faults and the drills of `chaos`, by the tests of whole runs and by the benchmarks.
"""
