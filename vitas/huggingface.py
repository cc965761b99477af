"""A trained network as a folder that timm and Hugging Face's tools read: `config.json`, `model.safetensors`, and a card
for people, `README.md`.

After `import vitas.timm`, `timm.create_model("local-dir:FOLDER", pretrained=True)`
is the network; uploaded to the Hub as it is, so is "hf-hub:OWNER/NAME".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitas import checkpoint
from vitas.errors import UserError
from vitas.files import write_folder
from vitas.model_card import UNKNOWN_LICENSE, ImagesRead, Measured, Trained, model_card
from vitas.models.vision_transformer import VisionTransformer
from vitas.plain_data import json_bytes, parse_json, read_text
from vitas.timm import GENERIC, POOL_OF_CLASSIFIER

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
# In the config, of the card: people go on writing at it, and what they wrote is not replaced.
_CARD_DIGEST = "card_sha256"


def write_huggingface_folder(
    folder: Path,
    network: VisionTransformer,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str],
    facts: Mapping[str, object],
    crop_fraction: float = 0.875,
    measured: Measured | None = None,
    trained: Trained | None = None,
    license_name: str = UNKNOWN_LICENSE,
) -> None:
    """Write a network, whole or not at all.

    mean, std: of the channels, with which images in [0, 1] are normalised.
    class_names: in the order of the logits.
    facts: what is known of the network (MACs, parameters, top-1 ...), plain
        data for people; strings in the metadata of `model.safetensors`.
    crop_fraction: the central part of the resized image that the network is tested on.
    measured, trained, license_name: what the card says of test, training and licence (see `vitas.model_card`).

    An earlier folder of this kind is replaced. Raises `UserError` where the
    folder is another, or its card was edited, where names or channels do not
    match the network, for a network that is no architecture's, and for facts
    that are no plain data.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    architecture = network.architecture
    if architecture is None:
        raise UserError(f"{folder}: the network's classifier or last norm was taken away; no architecture says that")
    if len(class_names) != network.num_classes:
        raise UserError(f"class_names: found {len(class_names)}; the network has {network.num_classes} classes")
    size, in_chans = network.image_size, network.patch_embed.proj.in_channels
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != in_chans:
            raise UserError(f"{key}: found {len(values)} numbers; the images have {in_chans} channels")
    config = {
        # The entry point for any architecture: the reader need not have registered this one.
        "architecture": GENERIC,
        "num_classes": network.num_classes,
        "num_features": architecture.embed_dim,
        "global_pool": POOL_OF_CLASSIFIER[architecture.classifier],
        "label_names": list(class_names),
        "model_args": {"architecture": str(architecture)},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [in_chans, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": float(crop_fraction),
            "crop_mode": "center",
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
            "num_classes": network.num_classes,
            "pool_size": None,
            # timm before 1.0.31 takes all weights for those of three channels, and would adapt ours where they fit.
            "first_conv": "patch_embed.proj" if in_chans == 3 else None,
            "classifier": "head",
        },
        "facts": dict(facts),
    }
    # safetensors' readers look for the format; the rest is for people.
    metadata = _as_strings(facts) | {"format": "pt", "architecture": str(architecture)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    name = folder.resolve().name
    images = ImagesRead(in_chans, size, crop_fraction)
    card = model_card(name, architecture, images, class_names, facts, measured, trained, license_name).encode()
    config[_CARD_DIGEST] = hashlib.sha256(card).hexdigest()
    weights = checkpoint.safetensors_bytes(tensors, metadata)
    write_folder(folder, {CONFIG: json_bytes(config), WEIGHTS: weights, CARD: card})


def _as_strings(facts: Mapping[str, object]) -> dict[str, str]:
    strings = {}
    for key, value in facts.items():
        if not isinstance(key, str):
            raise UserError(f"facts: found {key!r} as a name; names must be strings")
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UserError(f"facts: {key} is {value!r}; it must be plain data with finite numbers") from None
        strings[key] = value if isinstance(value, str) else text
    return strings


def _check_replaceable(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is no folder; give one that is not there yet")
    if not folder.exists():
        return
    held = sorted(path.name for path in folder.iterdir())
    # Earlier versions wrote no card.
    config = _our_config(folder / CONFIG) if held in ([CONFIG, WEIGHTS], [CARD, CONFIG, WEIGHTS]) else None
    if held and config is None:
        shown = ", ".join(held[:3]) + (" ..." if len(held) > 3 else "")
        raise UserError(f"{folder} holds {shown}, which was not written by this project; give another folder")
    if CARD in held and config and config.get(_CARD_DIGEST) != hashlib.sha256((folder / CARD).read_bytes()).hexdigest():
        raise UserError(f"{folder / CARD} was edited, and would be lost; move it away, or give another folder")


def _our_config(path: Path) -> dict[str, object] | None:
    try:
        config = parse_json(read_text(path), str(path))
    except UserError:
        return None
    return config if isinstance(config, dict) and config.get("architecture") == GENERIC else None
