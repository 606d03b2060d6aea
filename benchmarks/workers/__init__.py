"""What the trainers of the benchmarks run, one module each: `python -m benchmarks.workers.NAME`."""
