"""`predict`: the most probable classes of pictures, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inference.network import TrainedNetwork, trained_network
from vitas.config import RunConfig
from vitas.data.images import Pictures, channels, decode, find_pictures, normalize
from vitas.errors import UserError, printable
from vitas.evaluate import autocast
from vitas.files import make_folder, write_text
from vitas.report import shown_path

STDOUT = "-"
_COLUMNS = ("class", "probability")


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of a picture, the best first. labels: outputs of the network."""

    path: Path
    labels: list[int]
    probabilities: list[float]


def predict(config: RunConfig, places: Sequence[str], top: int = 5, csv_file: str | None = None) -> bool:
    """Show the `top` most probable classes of pictures and of those below folders or in packs; whether all could be
    read.

    csv_file: where they are written as CSV; `-` prints that, and no table.

    What is missing or no image is named on stderr, and the others are answered.
    Which network, and how a picture is read, is as `test` has it. Raises
    `UserError` as `trained_network` does, if there is no picture at all, and
    for a `csv_file` that cannot be one.
    """
    pictures = find_pictures(places)
    if not pictures.paths:
        raise UserError("\n".join(pictures.missing))
    if csv_file not in (None, STDOUT):
        _check_csv(Path(csv_file))
    trained = trained_network(config)
    _print_to_stderr(f"takes {shown_path(trained.path)}")
    if not trained.named:
        _print_to_stderr(
            f"{config.test.data.data_dir} is not there, so class names are not known and classes are numbers"
        )
    for line in pictures.missing:
        _print_to_stderr(f"error: {line}")
    predictions = list(predictions_of(trained, pictures, top))
    if csv_file == STDOUT:
        _write_to_stdout(as_csv(predictions, trained.class_names))
    else:
        _print_table(predictions, trained.class_names)
        if csv_file is not None:
            write_text(Path(csv_file), as_csv(predictions, trained.class_names))
    return len(predictions) == len(pictures.paths) and not pictures.missing


def predictions_of(trained: TrainedNetwork, pictures: Pictures, top: int) -> Iterator[Prediction]:
    """Predictions of pictures, on the GPU where there is one; a line on stderr for each that is no image."""
    test, model = trained.config.test, trained.config.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = trained.network.to(device)
    mean, std = channels(model.mean, device), channels(model.std, device)
    data = test.data
    decoded = decode(
        pictures.paths, model.image_size, data.crop_fraction, test.batch_size, data.workers, load=pictures.load
    )
    for batch in decoded:
        for path, reason in batch.refused.items():
            _print_to_stderr(f"error: {printable(str(path))} {printable(reason)}")
        if not batch.paths:
            continue
        with torch.inference_mode(), autocast(device, test.amp):
            logits = network(normalize(batch.images.to(device), mean, std))
        best = logits.float().softmax(dim=1).topk(min(top, model.num_classes))
        rows = zip(batch.paths, best.indices.tolist(), best.values.tolist(), strict=True)
        yield from (Prediction(*row) for row in rows)


def as_csv(predictions: Sequence[Prediction], class_names: Sequence[str]) -> str:
    """One line a picture: its path, then name and probability of each class, the most probable first."""
    count = max((len(prediction.labels) for prediction in predictions), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *(f"{column}_{rank}" for rank in range(1, count + 1) for column in _COLUMNS)])
    for prediction in predictions:
        named = zip(prediction.labels, prediction.probabilities, strict=True)
        cells = [cell for label, probability in named for cell in (class_names[label], f"{probability:.6f}")]
        writer.writerow([prediction.path, *cells])
    return text.getvalue()


def _print_table(predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    if not predictions:
        return
    table = Table(box=box.SIMPLE)
    for column in ("image", *(f"top-{rank}" for rank in range(1, len(predictions[0].labels) + 1))):
        table.add_column(column, overflow="fold")
    for prediction in predictions:
        named = zip(prediction.labels, prediction.probabilities, strict=True)
        cells = [f"{class_names[label]} {100 * probability:.1f}%" for label, probability in named]
        # As text: a name may hold what is markup to rich.
        table.add_row(*(Text(printable(cell)) for cell in (str(prediction.path), *cells)))
    console = Console()
    # A pipe is as wide as its lines are; rich would fold them at 80.
    (console if console.is_terminal else Console(width=10_000)).print(table)


def _check_csv(path: Path) -> None:
    if path.suffix != ".csv":
        # Whoever takes --csv for a switch would lose the picture that stands after it.
        raise UserError(f"--csv: found {str(path)!r}; it must be a file that ends with .csv, or - to print it")
    if path.is_dir():
        raise UserError(f"--csv: found {str(path)!r}, which is a folder; it must be a file")
    make_folder(path.parent, "--csv")


def _write_to_stdout(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whoever reads it opens the files: by their names as the file system has them, whatever the encoding.
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.stdout.write(text)


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
