"""The protocol of a run. Pure: records, keys, decisions and transactions, without I/O and without a clock."""
