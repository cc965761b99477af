"""`vitas pack`: an image folder as a few large files, which every stage reads as it reads the folder."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vitas.cli.options import (
    PATH,
    POSITIVE,
    command,
    cores_here,
    json_option,
    parsed,
    print_json,
    progress_bar,
    read_amount,
)
from vitas.data.packing import LEFT_OUT, PackOptions
from vitas.data.packing import pack as pack_folder


def read_bytes(text: str) -> int:
    """Parse a number of bytes: 1G, 500M."""
    return read_amount(text, "a number of bytes, as 1G or 500M")


@command(
    "vitas pack imagenet/train imagenet/train.pack               # the files as they are",
    "vitas pack imagenet/train imagenet/train256.pack --size 256   # faster to decode, and a fraction of the bytes",
    "vitas pack imagenet/train imagenet/train.raw --size 256 --uncompressed   # for few cores and much disk",
    "vitas pack imagenet/val imagenet/val.pack --leave-out-bad --json",
)
@click.argument("folder", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--size", type=POSITIVE, metavar="PIXELS", help="Bring the shorter side of larger images to it; else they are kept."
)
@click.option(
    "--quality",
    type=click.IntRange(1, 95),
    metavar="N",
    help="With --size, of the JPEG files that are written (90).",
)
@click.option(
    "--uncompressed", is_flag=True, help="Write the pixels of every image: many times the bytes, and none to decode."
)
@click.option("--workers", type=POSITIVE, metavar="N", help="Processes; by default the cores there are.")
@click.option(
    "--shard-size", type=parsed("size", read_bytes), default="1G", metavar="BYTES", help="Of a file, as 500M (1G)."
)
@click.option("--leave-out-bad", is_flag=True, help="Leave bad images out, and name them; else they are refused.")
@json_option
def pack(
    folder: Path,
    out: Path,
    size: int | None,
    quality: int | None,
    uncompressed: bool,
    workers: int | None,
    shard_size: int,
    leave_out_bad: bool,
    as_json: bool,
) -> None:
    """Write FOLDER, which has one folder of images per class, as OUT: a few large files that every stage reads.

    Every image is opened. OUT appears when it is whole; a packing that was killed goes on with the same command. The
    same images and options give the same bytes.
    """
    if quality is not None and size is None:
        raise click.UsageError("--quality is of images that --size makes smaller; give both")
    if quality is not None and uncompressed:
        raise click.UsageError("--quality is of JPEG files, and --uncompressed writes none; leave one out")
    options = PackOptions(size, quality or PackOptions.quality, shard_size, leave_out_bad, uncompressed)
    with progress_bar(str(out)) as update:
        made = pack_folder(folder, out, options, workers or cores_here(), update, _tell)
    index = made.index
    size_of_all = sum(shard.bytes for shard in index.shards)
    if as_json:
        print_json(
            {
                "pack": str(out),
                "images": index.images,
                "classes": len(index.classes),
                "files": len(index.shards),
                "bytes": size_of_all,
                "left_out": made.left_out,
            }
        )
        return
    bad = f", {len(made.left_out):,} bad ones left out ({out / LEFT_OUT})" if made.left_out else ""
    files = f"{len(index.shards):,} file{'s'[: len(index.shards) != 1]}"
    what = f"{index.images:,} images of {len(index.classes):,} classes in {files}, {size_of_all / 1e6:,.1f} MB"
    print(f"{out}: {what}{bad}\nuse it: data_dir: {out}")


def _tell(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
