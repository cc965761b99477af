"""The `search` and `sample` stages: a supernet, and the architectures that evolution finds with it."""
