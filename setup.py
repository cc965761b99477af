from pathlib import Path

from setuptools import find_packages, setup

LOGGERS = {"wandb": ["wandb>=0.17"], "mlflow": ["mlflow-skinny>=2.14"]}
EXPORT = ["onnx>=1.18", "onnxscript>=0.6", "onnxruntime>=1.22"]
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings-python>=2",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "matplotlib>=3.8",
]
REPORT = ["vl-convert-python>=1.8"]
PACK = ["pyarrow>=16"]

setup(
    name="vitas",
    version="0.1.0",
    description="Find vision transformers under a compute budget, and train them.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    # The folder `configs` becomes a part of the library (see vitas/packaged.py).
    packages=[*find_packages(include=["vitas*", "search*", "retrain*", "inference*"]), "vitas.configs"],
    package_dir={"vitas.configs": "configs"},
    package_data={
        "vitas": ["py.typed"],
        "vitas.config": ["meanings.yaml"],
        "vitas.report_page": ["page.css", "page.js"],
        "vitas.configs": ["*.yaml", "*/*.yaml", "schema.json"],
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.26",  # before, its checkpoint_path= ran code from files
        "safetensors>=0.4",
        "pymoo>=0.6.1.6",  # before, its operators get no generator
        "numpy>=1.26",
        "scipy>=1.12",
        "pillow>=10.3",
        "simplejpeg>=1.8",
        "pyyaml>=6",
        "pydantic>=2.12",
        "tensorboard>=2.18",  # before, it needs numpy 1
        "submitit>=1.5",
        "rich>=13",
        "click>=8.2",
    ],
    extras_require={
        "quickstart": ["scikit-learn>=1.4", *REPORT],
        "report": REPORT,
        "export": EXPORT,
        "pack": PACK,
        **LOGGERS,
        "bench": ["mlxtend>=0.23", "matplotlib>=3.8", "torch-pruning>=1.6"],
        "docs": DOCS,
        "test": [
            "scikit-learn>=1.4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "coverage>=7.10",
            "ruff>=0.6",
            "mypy>=2.4",
            "jsonschema>=4.20",
            "types-PyYAML>=6",
            "selenium>=4.20",
            "setuptools>=68",
            "wheel>=0.43",
            *EXPORT,
            *REPORT,
            *PACK,
            *LOGGERS["wandb"],
            *LOGGERS["mlflow"],
            *DOCS,
        ],
    },
    entry_points={"console_scripts": ["vitas = vitas.cli:main"]},
)
