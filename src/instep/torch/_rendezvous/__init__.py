"""The handler behind `torchrun --rdzv-backend=etcd3`."""
