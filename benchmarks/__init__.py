"""The project's own figures, measured: `python -m benchmarks`. Not part of the package."""
