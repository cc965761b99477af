"""The `search` and `sample` stages: train a supernet, then evolve architectures with its scores."""
