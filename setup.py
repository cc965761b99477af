from pathlib import Path

from setuptools import find_packages, setup

EXPORT = ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"]
REPORT = ["vl-convert-python>=1.8"]

setup(
    name="vitas",
    version="0.1.0",
    description="Find vision transformers under a compute budget, and train them.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["vitas*", "search*", "retrain*", "inference*"]),
    package_data={"vitas.report_page": ["page.css", "page.js"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.26",  # before, its checkpoint_path= ran code from files
        "safetensors>=0.4",
        "pymoo>=0.6.1.5",
        "numpy",
        "scipy",
        "pillow",
        "pyyaml>=6",
        "pydantic>=2.7",
        "tensorboard>=2.16",
        "submitit>=1.5",
        "rich>=13",
    ],
    extras_require={
        "quickstart": ["scikit-learn>=1.4", *REPORT],
        "report": REPORT,
        "export": EXPORT,
        "bench": ["mlxtend>=0.23", "matplotlib>=3.8", "torch-pruning>=1.6"],
        "test": [
            "scikit-learn>=1.4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=2.4",
            "types-PyYAML>=6",
            "selenium>=4.20",
            *EXPORT,
            *REPORT,
        ],
    },
    entry_points={"console_scripts": ["vitas = vitas.cli:main"]},
)
