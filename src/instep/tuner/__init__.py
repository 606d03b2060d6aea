"""The decisions of the tuner: detects that a run is ill, and decides what to do about it. Pure: no I/O and no clock."""
