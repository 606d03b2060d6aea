"""`make chaos` and `make drills`: real runs on a real etcd under faults, with everything checked.

`python -m chaos --seed 1 --duration-s 600` plans faults from the seed and injects them while an operator
makes changes and clients use every recipe. The checkers of `instep.testing.checkers` and of `chaos.checks` then check
the recorded histories. `python -m chaos drill NAME` repeats one failure.

Repeatable: the plan of faults and the operator's changes. Not repeatable: what a real cluster does at that time.
"""
