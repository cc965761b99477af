"""python -m retrain CONFIG [key=value ...]"""

from vitas.program import run_stages

if __name__ == "__main__":
    run_stages("retrain", "Train one architecture with the published recipe.")
