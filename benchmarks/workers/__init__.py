"""The scripts of the benchmarks' trainers, one module each: `python -m benchmarks.workers.NAME`."""
