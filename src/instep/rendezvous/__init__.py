"""The rendezvous of torchrun agents: registrations, the coordinator that forms rounds, and the nodes' part."""
