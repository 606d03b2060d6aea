"""`make chaos`: a run of real agents on a real cluster, everything broken at random, and everything checked.

`python -m chaos --seed 1 --duration-s 600` plans faults from the seed, carries them out beside live changes,
commands and clients of every recipe, and puts the recorded histories through the checkers of `instep.testing.checkers`.

Repeatable: the plan of faults and the operator's changes. Not repeatable: what a real cluster does meanwhile.
"""
