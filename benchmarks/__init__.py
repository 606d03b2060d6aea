"""The benchmarks of the project: `python -m benchmarks`. Not part of the package."""
