"""`make drills`: one promise at a time, broken at as many times and in as many ways as there are rounds.

`python -m drills NAME --rounds N --seed S` says a line a round and a verdict, and exits with 0 if every round held.

Repeatable: who is struck, how and when. Not repeatable: what real processes and a real etcd do meanwhile.
"""
