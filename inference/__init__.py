"""The `test` stage, which measures a trained network; and its export, and its predictions."""
