"""Do As-ViT's scores at initialisation rank topologies as their accuracy after training does?

    python bench/asvit_ranking.py IMAGES [--image-size 32] [--hidden-dim 32] [--topologies 32] [--seeds 2]
    python bench/asvit_ranking.py --plot-only [--image-size 32]

Random topologies of the published space, all at one hidden dim, are scored and
then trained by the `retrain` stage with one recipe; the `test` stage measures
them. Every result is written to a journal at once, so the same command resumes
a stopped run, and `--plot-only` needs the journal alone. IMAGES is the folder
that bench/images.py writes; it is created if it does not exist.

Kendall's tau compares the accuracy, a mean over the seeds, with each predictor,
whose sign is chosen so that more should be better. Its interval is a bootstrap
over the topologies that holds 95% of the taus. The tau between the accuracies
of two seeds says how well anything could rank.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from images import write_mnist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, rankdata
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from inference.test import test
from retrain.retrain import retrain
from vitas import Genotype, GenotypeSpace
from vitas.asvit.scores import score_once
from vitas.config import Model, RunConfig
from vitas.data.evaluation import EvaluationSet
from vitas.data.folders import EvaluationData
from vitas.data.images import normalize
from vitas.distributed import World
from vitas.errors import UserError
from vitas.journal import Journal

REPOSITORY = Path(__file__).resolve().parents[1]
CLASSES = 10
# Twice the published five, to see how well five agree with five others.
REPEAT, INITIALISATIONS = 5, 10
NTK_IMAGES = 16
# Networks are tested on both parts that they were not trained on, for a finer accuracy.
TESTED = ("val", "test")
RECIPE = {
    "epochs": 6,
    "batch_size": 50,
    "lr": 1e-3,
    "warmup_epochs": 1,
    "clip_grad": 5.0,
    "drop_path_rate": 0.0,
}
AUGMENTATION = {"auto_augment": None, "color_jitter": 0.0, "random_erasing": 0.0, "flip": 0.0, "scale": [0.7, 1.0]}
BOOTSTRAPS, RANDOM_SCORES = 2000, 2000
# Pairs of topologies whose MACs differ by no more than this share count as equally expensive.
SIMILAR = 0.05
# The fewest topologies with two seeds for which a tau between the seeds is given.
ENOUGH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--image-size", type=int, default=32, help="to which the images are enlarged")
    parser.add_argument("--hidden-dim", type=int, default=32)
    parser.add_argument("--topologies", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="networks that are trained side by side")
    parser.add_argument("--journal", type=Path, help="by default bench/results/asvit_ranking_SIZE.jsonl")
    parser.add_argument("--plot", type=Path, help="by default docs/asvit_ranking_SIZE.png")
    parser.add_argument("--plot-only", action="store_true")
    arguments = parser.parse_args()
    name = f"asvit_ranking_{arguments.image_size}"
    journal = Journal(arguments.journal or REPOSITORY / "bench" / "results" / f"{name}.jsonl")
    if not arguments.plot_only:
        if arguments.images is None:
            parser.error("images: is missing; say where bench/images.py wrote them, or may write them")
        write_mnist(arguments.images)
        measure(journal, arguments)
    results = Results.of(journal)
    tell(results)
    draw(results, arguments.plot or REPOSITORY / "docs" / f"{name}.png")


def topologies(count: int, hidden_dim: int) -> list[Genotype]:
    """The first `count` of a fixed series of different random topologies."""
    space, rng = GenotypeSpace(), np.random.default_rng(0)
    found: dict[Genotype, None] = {}
    while len(found) < count:
        found[replace(space.sample(rng), hidden_dim=hidden_dim)] = None
    return list(found)


# Measuring


def measure(journal: Journal, arguments: argparse.Namespace) -> None:
    """Add to the journal the results that it lacks."""
    images, image_size = arguments.images, arguments.image_size
    setup = {"kind": "setup", "hidden_dim": arguments.hidden_dim, "image_size": image_size} | RECIPE | AUGMENTATION
    if not journal.lines:
        journal.append(setup)
    elif journal.lines[0] != setup:
        raise UserError(f"{journal.path}: it was begun with another recipe; give a --journal that is not there")
    genotypes = topologies(arguments.topologies, arguments.hidden_dim)
    scored = {line["genotype"] for line in of_kind(journal, "scores")}
    batch = ntk_images(images, image_size)
    for genotype in genotypes:
        if str(genotype) not in scored:
            journal.append(scores_of(genotype, batch))
    done = {(line["genotype"], line["seed"]) for line in of_kind(journal, "training")}
    # Seed by seed, so that a stopped run has compared as many topologies as possible.
    todo = [(g, seed) for seed in range(arguments.seeds) for g in genotypes if (str(g), seed) not in done]
    # Not forked: a fork would not have the threads of this process.
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        trainings = [pool.submit(accuracy_of, genotype, seed, images, image_size) for genotype, seed in todo]
        for number, training in enumerate(as_completed(trainings), 1):
            line = training.result()
            journal.append(line)
            print(
                f"{number} of {len(todo)}: {line['genotype']}, seed {line['seed']}: "
                f"top-1 {line['top1']:.2f}% in {line['seconds']:.0f} s",
                flush=True,
            )


def of_kind(journal: Journal, kind: str) -> Iterator[dict]:
    return (line for line in journal.lines if line["kind"] == kind)


def ntk_images(images: Path, image_size: int) -> Tensor:
    """Random training images, the same for every network, normalised as in the stages."""
    model = Model()
    data = EvaluationData(data_dir=str(images / "train"), workers=0, crop_fraction=1.0)
    found = EvaluationSet.load(data, image_size, model.mean, model.std, World(), everything=True)
    chosen = np.random.default_rng(0).permutation(found.total)[:NTK_IMAGES]
    return normalize(found.images[chosen], found.mean, found.std)


def scores_of(genotype: Genotype, batch: Tensor) -> dict:
    """Costs, and both scores for each initialisation.

    The mean over the first n is the score with `search.repeat` n. The NTK is
    that of the batch, and for comparison that of Gaussian noise.
    """
    image_size = batch.shape[-1]
    start = time.perf_counter()
    real = [score_once(genotype, image_size, index=i, images=batch) for i in range(INITIALISATIONS)]
    seconds = time.perf_counter() - start
    noise = [score_once(genotype, image_size, index=i, batch_size=len(batch)) for i in range(INITIALISATIONS)]
    return {
        "kind": "scores",
        "genotype": str(genotype),
        "macs": genotype.macs(image_size, CLASSES),
        "parameters": genotype.parameters(image_size, CLASSES),
        "length_distortion": [found.length_distortion for found in real],
        "ntk_condition": [found.ntk_condition for found in real],
        "ntk_condition_noise": [found.ntk_condition for found in noise],
        "seconds": round(seconds / INITIALISATIONS, 3),
    }


def accuracy_of(genotype: Genotype, seed: int, images: Path, image_size: int) -> dict:
    """Top-1 in percent and loss after training, averaged over the tested parts (which have the same size)."""
    start = time.perf_counter()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        # On a CPU, fused attention is slower than plain products for windows of so few tokens.
        sdpa_kernel(SDPBackend.MATH),
    ):
        retrain(configuration(genotype, seed, images, image_size, TESTED[0], folder), World())
        for part in TESTED:
            config = configuration(genotype, seed, images, image_size, part, folder)
            test(config, World())
            rows.append(json.loads(config.folder.results.read_text()))
    means = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in ("top1", "loss")}
    seconds = round(time.perf_counter() - start, 1)
    return {"kind": "training", "genotype": str(genotype), "seed": seed, **means, "seconds": seconds}


def configuration(genotype: Genotype, seed: int, images: Path, image_size: int, part: str, save_path: str) -> RunConfig:
    """The configuration that trains with the one recipe, and tests on `part` of the images."""
    retrain_data = {"data_dir": str(images / "train"), "workers": 0, "augmentation": AUGMENTATION}
    test_data = {"data_dir": str(images / part), "workers": 0, "crop_fraction": 1.0}
    only_last = {"checkpoint_epochs": RECIPE["epochs"]}
    return RunConfig.model_validate(
        {
            "save_path": save_path,
            "seed": seed,
            "model": {"image_size": image_size, "num_classes": CLASSES},
            "retrain": RECIPE | only_last | {"architecture": str(genotype), "data": retrain_data},
            "test": {"data": test_data},
        }
    )


# Comparing


@dataclass(frozen=True)
class Results:
    """What a journal holds; topologies are the last axis of every array.

    accuracy, loss: [seeds, topologies], NaN where a later seed was not trained.
    scores: each score's name in the journal -> [initialisations, topologies].
    """

    genotypes: list[Genotype]
    accuracy: np.ndarray
    loss: np.ndarray
    macs: np.ndarray
    parameters: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def of(cls, journal: Journal) -> Results:
        """Raises `UserError` for fewer than three topologies."""
        scored = {line["genotype"]: line for line in of_kind(journal, "scores")}
        trained = {(line["seed"], line["genotype"]): line for line in of_kind(journal, "training")}
        names = [name for name in scored if (0, name) in trained]
        if len(names) < 3:
            raise UserError(f"{journal.path}: holds {len(names)} trained topologies; run without --plot-only first")
        seeds = sorted({seed for seed, _ in trained})

        def column(key: str) -> np.ndarray:
            return np.array([scored[name][key] for name in names]).T

        def outcome(key: str) -> np.ndarray:
            return np.array([[trained.get((seed, name), {}).get(key, np.nan) for name in names] for seed in seeds])

        scores = {key: column(key) for key in ("length_distortion", "ntk_condition", "ntk_condition_noise")}
        costs = column("macs"), column("parameters")
        return cls([Genotype.parse(name) for name in names], outcome("top1"), outcome("loss"), *costs, scores)

    def over_seeds(self, outcome: np.ndarray) -> np.ndarray:
        """A mean for each topology, over those seeds that all topologies were trained with, for a fair comparison."""
        return outcome[~np.isnan(outcome).any(axis=1)].mean(axis=0)

    @property
    def twice(self) -> np.ndarray:
        """The accuracy of the first two seeds [2, topologies], for the topologies that have both."""
        has_both = (~np.isnan(self.accuracy[:2])).sum(axis=0) == 2
        return self.accuracy[:2, has_both] if has_both.any() else np.empty((2, 0))

    def score(self, name: str, initialisations: slice = slice(REPEAT)) -> np.ndarray:
        """A score of each topology, averaged over some initialisations."""
        return self.scores[name][initialisations].mean(axis=0)

    def predictors(self, initialisations: slice = slice(REPEAT)) -> dict[str, np.ndarray]:
        """Name -> a value for each topology; more should be better."""
        stretch, condition = (self.score(name, initialisations) for name in ("length_distortion", "ntk_condition"))
        return {
            "length distortion": stretch,
            "-NTK condition": -condition,
            "-NTK condition, noise": -self.score("ntk_condition_noise", initialisations),
            "both, rank sum": rankdata(stretch) + rankdata(-condition),
            "parameters": self.parameters,
            "MACs": self.macs,
        }


def tau(x: np.ndarray, y: np.ndarray) -> float:
    return kendalltau(x, y).statistic


def interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the bootstrapped taus."""
    draws = np.random.default_rng(0).integers(0, len(x), size=(BOOTSTRAPS, len(x)))
    return middle([tau(x[draw], y[draw]) for draw in draws])


def middle(taus: Sequence[float]) -> tuple[float, float]:
    """The ends of the middle 95%."""
    return tuple(np.percentile(taus, [2.5, 97.5]))


def tau_of_similar(x: np.ndarray, y: np.ndarray, macs: np.ndarray) -> tuple[float, int]:
    """Tau over the pairs with similar MACs only, and their number."""
    first, second = np.triu_indices(len(x), 1)
    close = np.abs(np.log(macs[first] / macs[second])) < np.log1p(SIMILAR)
    x_signs, y_signs = (np.sign(values[first] - values[second])[close] for values in (x, y))
    both = np.sqrt(np.abs(x_signs).sum() * np.abs(y_signs).sum())
    return (x_signs * y_signs).sum() / both, int(close.sum())


def random_taus(y: np.ndarray) -> np.ndarray:
    """The taus of many random scores."""
    rng = np.random.default_rng(0)
    return np.array([tau(rng.random(len(y)), y) for _ in range(RANDOM_SCORES)])


def tell(results: Results) -> None:
    """Print the tables of bench/README.md."""
    accuracy, loss = results.over_seeds(results.accuracy), results.over_seeds(results.loss)
    console, count = Console(width=110), len(accuracy)
    console.print(
        f"{count} topologies: top-1 from {accuracy.min():.2f} to {accuracy.max():.2f}%, "
        f"mean {accuracy.mean():.2f}%, standard deviation {accuracy.std(ddof=1):.2f} points"
    )
    tell_noise(results, accuracy, console)
    chance = random_taus(accuracy)
    table = table_of("predictor", "tau", "95% interval", "similar MACs", "with the loss", "with the parameters")
    for name, values in results.predictors().items():
        similar, pairs = tau_of_similar(values, accuracy, results.macs)
        others = (similar, tau(values, -loss), tau(values, results.parameters))
        around = interval(values, accuracy)
        table.add_row(name, f"{tau(values, accuracy):.2f}", shown(around), *map("{:.2f}".format, others))
    table.add_row("random (absolute)", f"{np.abs(chance).mean():.2f}", shown(middle(chance)))
    console.print(table)
    console.print(f"similar: {pairs} of {count * (count - 1) // 2} pairs, whose MACs differ by at most {SIMILAR:.0%}")
    tell_repeats(results, accuracy, console)
    tell_genes(results, accuracy, console)


def tell_noise(results: Results, accuracy: np.ndarray, console: Console) -> None:
    """How much of the spread of the accuracies is due to the topologies, and how well anything could rank them."""
    first, second = results.twice
    if not len(first):
        return
    trained = ~np.isnan(results.accuracy)
    noise, spread = seed_variance(results), accuracy.var(ddof=1)
    seeds = trained.all(axis=1).sum()
    topologies_own = max(spread - noise / seeds, 0)
    # Of two normal variables, Kendall's tau is this function of their correlation.
    best = 2 / np.pi * np.arcsin((topologies_own / spread) ** 0.5)
    console.print(
        f"standard deviation of a topology's seeds {noise**0.5:.2f} points ({trained.sum() - len(accuracy)} trainings "
        f"with another seed), of the topologies without that noise {topologies_own**0.5:.2f}: "
        f"a perfect score would have tau {best:.2f} with the mean of {seeds} seed(s)"
    )
    if len(first) >= ENOUGH:
        around = shown(interval(first, second))
        console.print(f"tau between two seeds of {len(first)} topologies {tau(first, second):.2f}, {around}")


def seed_variance(results: Results) -> float:
    """The variance of the accuracy of one topology over seeds, pooled over the topologies that have several."""
    repeated = results.accuracy[:, (~np.isnan(results.accuracy)).sum(axis=0) > 1]
    freedom = (~np.isnan(repeated)).sum(axis=0) - 1
    return (np.nanvar(repeated, axis=0, ddof=1) * freedom).sum() / freedom.sum()


def tell_repeats(results: Results, accuracy: np.ndarray, console: Console) -> None:
    """What more initialisations change: how a score agrees with another draw of itself, and with the accuracy."""
    sizes = (1, REPEAT, INITIALISATIONS)
    table = table_of(
        "initialisations", *(f"tau of {n} and {n} others" for n in sizes[:-1]), *(f"of {n} and accuracy" for n in sizes)
    )
    for name in ("length distortion", "-NTK condition", "-NTK condition, noise", "both, rank sum"):
        groups = [
            [results.predictors(slice(at, at + size))[name] for at in range(0, INITIALISATIONS, size)] for size in sizes
        ]
        agreements = [np.mean([tau(*pair) for pair in itertools.combinations(group, 2)]) for group in groups[:-1]]
        taus = [np.mean([tau(values, accuracy) for values in group]) for group in groups]
        table.add_row(name, *map("{:.2f}".format, [*agreements, *taus]))
    console.print(table)


def tell_genes(results: Results, accuracy: np.ndarray, console: Console) -> None:
    """Which choices of the space the accuracy and the scores follow."""
    table = table_of("tau of a choice with", "accuracy", "length distortion", "-NTK condition")
    predictors = results.predictors()
    genomes = np.array([GenotypeSpace().encode(genotype) for genotype in results.genotypes])
    for name, gene in zip(GenotypeSpace().choices, genomes.T, strict=True):
        if len(set(gene)) > 1:
            others = (accuracy, predictors["length distortion"], predictors["-NTK condition"])
            table.add_row(name, *(f"{tau(gene, values):.2f}" for values in others))
    console.print(table)


def table_of(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    return table


def shown(ends: tuple[float, float]) -> str:
    return "{:.2f} to {:.2f}".format(*ends)


# Drawing


def draw(results: Results, path: Path) -> None:
    """One panel per predictor, one dot per topology."""
    accuracy = results.over_seeds(results.accuracy)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(2, 4)
    # Predictor -> the label of its axis, and the factor that its values are multiplied by.
    axes = {
        "length distortion": ("length distortion", 1),
        "-NTK condition": ("condition number, falling", -1),
        "-NTK condition, noise": ("condition number, falling", -1),
        "both, rank sum": ("rank sum", 1),
        "parameters": ("millions", 1e-6),
        "MACs": ("millions", 1e-6),
    }
    for panel, (name, values) in zip(grid.flat, results.predictors().items(), strict=False):
        label, scale = axes[name]
        draw_pair(panel, name, values, accuracy, label, scale)
    draw_random(grid.flat[6], accuracy)
    draw_seeds(grid.flat[7], results, accuracy)
    for panel in grid.flat:
        panel.tick_params(labelsize=8)
    for row in grid:
        row[0].set_ylabel("top-1 after training, %", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"the plot is in {path}")


def draw_pair(panel: Axes, name: str, x: np.ndarray, y: np.ndarray, label: str, scale: float = 1) -> None:
    panel.plot(x * scale, y, "o", markersize=4, color="tab:blue", alpha=0.8)
    if scale < 0:
        panel.invert_xaxis()
    low, high = interval(x, y)
    panel.set_title(f"{name}\nτ = {tau(x, y):.2f}  [{low:.2f}, {high:.2f}]", fontsize=10)
    panel.set_xlabel(label, fontsize=9)


def draw_seeds(panel: Axes, results: Results, accuracy: np.ndarray) -> None:
    """The accuracy of two seeds, in the range of the other panels; the distance from the line is noise."""
    first, second = results.twice
    if not len(first):
        panel.set_visible(False)
        return
    panel.axline((accuracy[0], accuracy[0]), slope=1, color="0.7", linewidth=1)
    panel.plot(second, first, "o", markersize=4, color="tab:blue", alpha=0.8)
    ends = accuracy.min() - 0.2, accuracy.max() + 0.2
    panel.set(xlim=ends, ylim=ends)
    said = f"τ = {tau(first, second):.2f}" if len(first) >= ENOUGH else f"{len(first)} topologies"
    panel.set_title(f"two seeds, {said}\nnoise {seed_variance(results) ** 0.5:.2f} points", fontsize=10)
    panel.set_xlabel("top-1 of another seed, %", fontsize=9)


def draw_random(panel: Axes, accuracy: np.ndarray) -> None:
    """The spread of the taus of random scores."""
    chance = random_taus(accuracy)
    low, high = middle(chance)
    panel.hist(chance, bins=30, color="0.7")
    for end in (low, high):
        panel.axvline(end, color="black", linewidth=1, linestyle="dashed")
    panel.set_title(f"random, mean |τ| = {np.abs(chance).mean():.2f}\n95% in [{low:.2f}, {high:.2f}]", fontsize=10)
    panel.set_xlabel(f"τ of {RANDOM_SCORES:,} random scores", fontsize=9)
    panel.set_yticks([])


if __name__ == "__main__":
    main()
