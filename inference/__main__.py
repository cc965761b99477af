"""python -m inference CONFIG [key=value ...]"""

from vitas.program import run_stages

if __name__ == "__main__":
    run_stages("inference", "Measure trained networks on the test images.", {"test": "inference.testing"})
