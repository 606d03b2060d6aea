from __future__ import annotations

import sys
from pathlib import Path

# The records of a run in etcd are written by the same helper as in the tests of instep.control.
sys.path.insert(0, str(Path(__file__).parent.parent / "control"))
