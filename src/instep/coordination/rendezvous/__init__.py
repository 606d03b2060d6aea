"""How the agents of torchrun form a world: who they are, one that decides, and what each of them is told."""
