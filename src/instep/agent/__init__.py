"""The node's agent: one small process that owns the etcd connection for all local ranks."""
