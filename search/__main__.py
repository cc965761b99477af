"""python -m search CONFIG [key=value ...]"""

from vitas.program import run_stages

if __name__ == "__main__":
    run_stages(
        "search",
        "Train the supernet (search), then evolve architectures with it (sample); CONFIG flags which to run. "
        "With search.method: asvit, find a topology without training and grow it (search).",
    )
