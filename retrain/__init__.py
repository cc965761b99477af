"""The `retrain` stage: the found architecture, trained from scratch."""
