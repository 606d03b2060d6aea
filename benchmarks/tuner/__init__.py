"""Measures the tuner: does it recover real training from real faults, and does it leave healthy training alone?

A small transformer trains on the text of Python's own documentation and library, as two ranks in one process. The
simulation feeds `instep.tuner.decide` what a run would report and carries out what it decides, as a run would: some
steps later, on all ranks at one gate. `python -m benchmarks.tuner` prints the results; `make bench-tuner` runs it.
"""
