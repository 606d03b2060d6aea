"""`python -m chaos ...` injects random faults; `python -m chaos drill NAME ...` repeats one failure."""

from __future__ import annotations

import sys

from chaos import drills, random_faults

if __name__ == "__main__":
    arguments = sys.argv[1:]
    raise SystemExit(drills.main(arguments[1:]) if arguments[:1] == ["drill"] else random_faults.main(arguments))
