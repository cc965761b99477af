"""The `retrain` stage: train one architecture."""
