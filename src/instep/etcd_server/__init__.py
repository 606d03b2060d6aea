"""Finds, starts and stops etcd programs on this machine, for `instep local`, the demo and `instep.testing`."""
