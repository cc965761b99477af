"""What the tests share: weights that all matter, images, bad images, and ranks without processes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.retrain.conftest import write_few_digits
from vitas import Genotype, StagedTransformer, VisionTransformer
from vitas.data import evaluation
from vitas.distributed import World
from vitas.models.vision_transformer import read_out

# The network of the reference file, of the released As-ViT.
REFERENCE = "4,2,2,1|2,1,2,2|3,1,3,1|2,1,2,1|16,16"
# Odd kernels with their uneven paddings, dims that the heads do not divide, windows of several tokens at 32 x 32.
UNEVEN = Genotype.parse("7,2,2,1|3,2,2,2|4,1,3,1|3,1,2,1|16,9")


def random_images(count: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that all matter, for evaluation: no zero biases, no norms of one."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def logits_of_all_tokens(network: VisionTransformer, images: Tensor) -> Tensor:
    """All tokens through all blocks, then the classifier: what the logits are defined as, and MACs are counted of."""
    classifier, prefix = network.architecture.classifier, network.architecture.prefix_tokens
    return network.head(read_out(network.forward_features(images), classifier, prefix))


@pytest.fixture(scope="session")
def supernet_space(tiny_spaces):
    return tiny_spaces["identity"]


@pytest.fixture(scope="session")
def asvit_arrays(reference) -> dict[str, np.ndarray]:
    """Weights, images, outputs and scores of the released As-ViT."""
    with np.load(reference / "asvit_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def released_asvit(asvit_arrays) -> StagedTransformer:
    """The network of the reference file, with its weights under their released names."""
    network = StagedTransformer(Genotype.parse(REFERENCE), 10, 64).eval()
    names = [name for name in asvit_arrays if name.startswith("weight/")]
    network.load_state_dict({name.removeprefix("weight/"): torch.from_numpy(asvit_arrays[name]) for name in names})
    return network


@pytest.fixture(scope="session")
def asvit_images(asvit_arrays) -> Tensor:
    return torch.from_numpy(asvit_arrays["image"]).float()


@pytest.fixture
def uneven() -> StagedTransformer:
    return randomise(StagedTransformer(UNEVEN, 5, 32))


def assert_equal_batches(one, other) -> None:
    """That two loaders give the same images and labels, bit for bit."""
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def write_bad_images(folder: Path) -> list[Path]:
    """One of each kind of files that are named as images and cannot be read as such."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("whole.jpg", "whole.png"):
        noise.save(folder / name)
    jpeg, png = ((folder / name).read_bytes() for name in ("whole.jpg", "whole.png"))
    for name in ("whole.jpg", "whole.png"):
        (folder / name).unlink()
    broken = bytearray(png)
    broken[png.index(b"IDAT") + 3000] ^= 255
    contents = {
        "text.png": b"no picture", "empty.jpg": b"", "cut_jpeg.jpg": jpeg[:-300], "cut_png.png": png[:-300],
        "broken_png.png": bytes(broken), "bomb.png": png_header(20_000), "small_bomb.png": png_header(10_000),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "float.tiff")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(folder / "deep.tiff")
    return sorted(folder.iterdir())


def png_header(side: int) -> bytes:
    """A PNG of side x side pixels that weighs nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def cmyk_profile() -> bytes:
    """A profile in which paper is white, full cyan is grey of L* 50, and every other full ink, or mixture, is black."""
    grey = [255] + [0] * 7 + [128] + [0] * 7
    lab = b"".join(bytes([lightness, 128, 128]) for lightness in grey)
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    lut = b"mft1" + bytes([0, 0, 0, 0, 4, 3, 2, 0]) + identity + ramp * 4 + lab + ramp * 3
    head = struct.pack(">I4sI4s4s4s", 128 + 16 + len(lut), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return head.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


@pytest.fixture
def as_ranks(monkeypatch) -> Callable[[int, Callable[[World], object]], list]:
    """(size, job) -> what job(World) returns, or raises, on each rank; ranks are threads, which gather as processes."""

    def run(size: int, job: Callable[[World], object]) -> list:
        barrier, items = threading.Barrier(size, timeout=30), [None] * size

        def gather(item: object, world: World) -> list:
            items[world.rank] = item
            barrier.wait()
            return list(items)

        def guarded(rank: int) -> object:
            try:
                return job(World(rank, size))
            except Exception as error:
                return error

        with monkeypatch.context() as patch, ThreadPoolExecutor(size) as pool:
            patch.setattr(evaluation, "gather", gather)
            return list(pool.map(guarded, range(size)))

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def trainings(make_config, digits, tmp_path) -> Path:
    """A configuration whose trainings have 16 images of each digit: 8 steps an epoch."""
    few = str(write_few_digits(digits, tmp_path / "few"))
    given = {f"{stage}.data.data_dir": few for stage in ("search", "retrain")}
    return make_config(given | {f"{stage}.batch_size": 20 for stage in ("search", "retrain")})
