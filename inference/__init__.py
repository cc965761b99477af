"""The `test` stage: measure a trained network."""
