"""`make chaos` and `make drills`: real runs on a real etcd, broken in every way, and everything checked.

`python -m chaos --seed 1 --duration-s 600` plans faults from the seed, carries them out beside live changes,
commands and clients of every recipe, and puts the recorded histories through the checkers of `instep.testing.checkers`
and of `chaos.checks`. `python -m chaos drill NAME` repeats one failure, round after round.

Repeatable: the plan of faults and the operator's changes. Not repeatable: what a real cluster does meanwhile.
"""
