"""Converts the YAML of the released ViTAS files into ours, as plain data.

A released file has the sections port, model, search, sample, retrain and test.
Values with the same meaning in our schema are copied unchecked, as our schema
checks them; only those that need converting are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar

from vitas.config_section import leaves
from vitas.errors import UserError, is_integer
from vitas.released.backbone import read_classes, read_model, read_space
from vitas.space import SearchSpace

Entry = TypeVar("Entry")

SHARING = {"BCNet": "bilateral", "AutoSlim": "ordinal"}
AUGMENTATION: dict[str, dict[str, str | float | None]] = {
    "deit": {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4},
    "deit_xaa_xcj": {"auto_augment": None, "color_jitter": 0.0},
}
# (mixup alpha, cutmix alpha) by mixup_stg.
MIXING = {None: (0.8, 1.0), "mixup": (0.8, 0.0), "cutmix": (0.0, 1.0)}
# Checkpoints to keep: about as many as the released training keeps; the released files test the last 20 epochs.
KEPT = 21
# Identity probability of each position where the released programs do not search it.
IDENTITY_PROBABILITY = 0.5

_MODEL = ("backbone", "depth", "heads_share", "qkv")
_TRAINED_MODEL = (*_MODEL, "net_id", "drop_path_rate", "channel_percent", "model_len")
_STRATEGY = ("task_type", "snapshot_freq", "print_freq", "resume", "save_path", "load_name", "load_path")
_TRAINING = (
    "max_epochs", *(f"optimizer.{key}" for key in ("type", "lr", "weight_decay", "momentum", "nesterov")),
    *(f"kwargs.{key}" for key in ("search", "mix_up", "mixup_stg", "warm_up")), *_STRATEGY,
)  # fmt: skip
_DATA = ("data_dir", "workers", "task_type", "augmentation", "batch_size")
_SPACE = ("channel_percent", "side_scheme", "heads_share", "Block_heads", "ps_num", "search_id")
_SAMPLER = (
    "init_pop", "pop_size", "n_gens", "sample_num", "search_num", "cal_train_mode", "flops_constraint", "flops_min",
    "GPU_search", "GPUs_constraint", "GPUs_min", *_SPACE,
)  # fmt: skip


def _keys(section: str, *groups: tuple[str, tuple[str, ...]]) -> list[str]:
    return [f"{section}.flag", *(f"{section}.{group}.{key}" for group, keys in groups for key in keys)]


KEYS = (
    "port",
    *(f"model.{key}" for key in _MODEL),
    *_keys("search", ("strategy", (*_TRAINING, *(f"kwargs.{key}" for key in _SPACE))), ("data", _DATA)),
    *_keys("sample", ("strategy", _STRATEGY), ("data", _DATA)),
    "sample.sampler.type",
    *(f"sample.sampler.kwargs.{key}" for key in _SAMPLER),
    *_keys("retrain", ("model", _TRAINED_MODEL), ("strategy", _TRAINING), ("data", _DATA)),
    *_keys("test", ("model", _TRAINED_MODEL), ("strategy", (*_STRATEGY, "start", "end", "strip")), ("data", _DATA)),
)
_SECTIONS = {".".join(key.split(".")[:i]) for key in KEYS for i in range(1, key.count(".") + 1)}


def is_released_configuration(data: object) -> bool:
    """Whether plain data is a released YAML, not one of ours."""
    if not isinstance(data, Mapping):
        return False
    sections = (data.get(name) for name in ("model", "search", "sample", "retrain", "test"))
    return any(isinstance(part, Mapping) and {"backbone", "strategy", "sampler"} & set(part) for part in sections)


def is_released_key(key: str) -> bool:
    """Whether a dotted key is one of the released YAML."""
    return key in KEYS or key in _SECTIONS or re.match(r"((retrain|test)\.)?model\.backbone\.", key) is not None


@dataclass
class Converted:
    """A released configuration, converted; the fields are those of `vitas.released.Configuration`.

    config: our schema, as plain data.
    """

    config: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    without_effect: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: object, origin: str) -> None:
        """Set one of our dotted keys, which comes from the released key `origin`."""
        *sections, last = key.split(".")
        section = self.config
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
        self.origin[key] = origin


def convert(data: Mapping[str, Any]) -> Converted:
    """Convert a released configuration. Raises `UserError`, beginning with the key, for what cannot be converted."""
    old = _Released(data)
    old.refuse_misspelled_keys()
    old.new.origin["save_path"] = "search.strategy.save_path"
    if old.given("search.strategy.save_path") not in (None, "None"):
        old.carry("search.strategy.save_path", "save_path")
    old.carry("port", "port")
    _carry_model(old)
    if old.given("search") is not None:
        _carry_training(old, "search")
        old.new.put("search.subnets.draw", "published", "search")
        old.new.put("search.subnets.together", "one", "search")
        _carry_identity_probability(old)
    if old.given("sample.flag") is True or old.given("sample.sampler") is not None:
        _carry_sample(old)
    if old.given("retrain") is not None:
        _carry_training(old, "retrain")
    if old.given("test") is not None:
        _carry_test(old)
    _carry_architectures(old)
    old.note_the_rest()
    return old.new


class _Released:
    """A released configuration that is being converted, and the result so far, `new`."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.leaves = dict(leaves(data))
        self._data = data
        self._seen: set[str] = set()
        self.new = Converted()

    def given(self, key: str) -> Any:
        """The value of a dotted key, unchecked; None if it is missing."""
        value: object = self._data
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        self._seen.add(key)
        return value

    def needed(self, key: str) -> Any:
        value = self.given(key)
        if value is None:
            raise UserError(f"{key}: is missing")
        return value

    def carry(self, key: str, ours: str, meaning: Callable[[object], object] = lambda value: value) -> None:
        """Set our key to the meaning of a released key's value, if there is one."""
        value = self.given(key)
        if value is not None:
            self.new.put(ours, meaning(value), key)

    def chosen(self, key: str, among: Mapping[Any, Entry]) -> Entry:
        """The entry of `among` that a key's value selects. Raises `UserError` for any other value."""
        value = self.given(key)
        if not isinstance(value, Hashable) or value not in among:
            raise UserError(f"{key}: found {value!r}; it must be {' or '.join(repr(word) for word in among if word)}")
        return among[value]

    def ignore(self, key: str, why: str = "") -> None:
        """Note that a key has no effect here."""
        value = self.given(key)
        if value is not None:
            self.new.without_effect[key] = why

    def refuse_misspelled_keys(self) -> None:
        """Raise `UserError` for an unknown key that resembles a known one that is missing."""
        for key in self.leaves:
            near = [] if is_released_key(key) else get_close_matches(key, KEYS, n=1, cutoff=0.9)
            if near and near[0] not in self.leaves:
                raise UserError(f"{key}: unknown key; did you mean {near[0]}?")

    def note_the_rest(self) -> None:
        """Note that all keys that were not read have no effect."""
        used = self._seen - _SECTIONS
        for key in self.leaves:
            if not any(key == each or key.startswith(f"{each}.") for each in used):
                self.new.without_effect[key] = "" if key in KEYS else "an unknown key"


def _carry_model(old: _Released) -> None:
    """Convert `model.backbone` with the ratios of search and sample to model.space; class count and sharing too."""
    section = old.given("model")
    ratios = _agreed(old, "channel_percent")
    scheme = _agreed(old, "side_scheme", SHARING)
    if scheme:
        old.new.put("model.sharing", SHARING[scheme[1]], scheme[0])
    if section is None:
        return
    if not scheme:
        # What the released programs do.
        old.new.put("model.sharing", "bilateral", "model")
    old.given("model.backbone")
    old.carry("model.qkv", "model.qkv_mode")
    old.ignore("model.depth", "the positions are those of the row Block")
    _require_shared_heads(old, "model")
    if ratios:
        space, _ = read_space(section, ratios[1], "model")
        searches = any(old.given(f"{stage}.flag") is True for stage in ("search", "sample"))
        mistake = None if searches else _mistake_in(space)
        if mistake:
            old.ignore("model.backbone", f"no stage searches, and none could: {mistake}")
        else:
            old.new.put("model.space", space, "model.backbone")
            old.new.origin["model.space.widths"] = ratios[0]
    classes = _class_counts(old)
    if len(set(classes.values())) > 1:
        (first, one), (second, other) = list(classes.items())[:2]
        raise UserError(f"{second}.backbone.FC: found {other} classes, and {first}.backbone.FC has {one}")
    where, count = next(iter(classes.items()))
    old.new.put("model.num_classes", count, f"{where}.backbone.FC")


def _mistake_in(space: Mapping[str, Any]) -> str | None:
    """Why these fields do not make a `SearchSpace`; None if they do, or if a field has a wrong type."""
    try:
        SearchSpace(**space)
    except UserError as error:
        return str(error)
    except TypeError:
        # Our schema checks the types.
        return None
    return None


def _agreed(old: _Released, name: str, among: Mapping[str, object] | None = None) -> tuple[str, Any] | None:
    """The key and value that search and sample agree on; None if neither has it. Raises `UserError` if they differ."""
    found = {}
    for key in (f"search.strategy.kwargs.{name}", f"sample.sampler.kwargs.{name}"):
        value = old.given(key)
        if value is not None:
            if among:
                old.chosen(key, among)
            found[key] = value
    if len(found) == 2:
        (first, one), (second, other) = found.items()
        if one != other:
            raise UserError(f"{second}: found {other!r}; it must be that of {first}, {one!r}")
    return next(iter(found.items()), None)


def _require_shared_heads(old: _Released, section: str) -> None:
    key = f"{section}.heads_share"
    if old.given(key) is False:
        raise UserError(f"{key}: found False; it must be True: separate blocks per head count were never released")


def _class_counts(old: _Released) -> dict[str, int]:
    """The class counts in the `model` sections of the flagged stages, by section; of all stages if none is flagged."""
    uses = {"search": "model", "sample": "model", "retrain": "retrain.model", "test": "test.model"}
    wanted = [uses[stage] for stage in uses if old.given(f"{stage}.flag") is True] or list(uses.values())
    sections = dict.fromkeys(section for section in wanted if old.given(section) is not None)
    return {section: read_classes(old.given(section), section) for section in sections or ("model",)}


def _carry_training(old: _Released, stage: str) -> None:
    old.carry(f"{stage}.flag", f"{stage}.flag")
    strategy = f"{stage}.strategy"
    _carry_data(old, stage)
    augmentation = f"{stage}.data.augmentation"
    old.carry(augmentation, augmentation, lambda word: dict(old.chosen(augmentation, AUGMENTATION)))
    old.carry(f"{stage}.data.batch_size", f"{stage}.batch_size")
    if old.given(f"{stage}.flag") is True:
        old.needed(f"{strategy}.max_epochs")
    old.carry(f"{strategy}.max_epochs", f"{stage}.epochs")
    old.carry(f"{strategy}.optimizer.lr", f"{stage}.lr")
    old.new.put(f"{stage}.min_lr", 0.0, f"{strategy}.optimizer.lr")
    old.carry(f"{strategy}.optimizer.weight_decay", f"{stage}.weight_decay")
    old.carry(f"{strategy}.kwargs.warm_up", f"{stage}.warmup_epochs")
    mixing = old.chosen(f"{strategy}.kwargs.mixup_stg", MIXING)
    mix_up = old.given(f"{strategy}.kwargs.mix_up") or False
    if not isinstance(mix_up, bool):
        raise UserError(f"{strategy}.kwargs.mix_up: found {mix_up!r}; it must be True or False")
    for name, alpha in zip(("mixup", "cutmix"), mixing if mix_up else (0.0, 0.0), strict=True):
        old.new.put(f"{stage}.{name}", alpha, f"{strategy}.kwargs.mix_up")
    old.carry(f"{strategy}.snapshot_freq", f"{stage}.checkpoint_steps")
    old.carry(f"{strategy}.print_freq", f"{stage}.log_steps")
    old.new.put(f"{stage}.keep", KEPT, strategy)
    optimizer = old.given(f"{strategy}.optimizer.type")
    if optimizer is not None:
        found = "" if optimizer == "AdamW" else f"{optimizer}: "
        old.ignore(f"{strategy}.optimizer.type", f"{found}AdamW is always used, as by the released programs")
    old.ignore(f"{strategy}.resume", "a run always resumes from its newest checkpoint")
    old.ignore(f"{strategy}.load_name", "a run always resumes from its newest checkpoint")
    old.ignore(f"{strategy}.kwargs.search")
    if stage == "retrain":
        old.ignore(f"{strategy}.save_path", "search.strategy.save_path is used for all stages")


def _carry_identity_probability(old: _Released) -> None:
    has_identities = old.new.config.get("model", {}).get("space", {}).get("identity", True)
    for key in ("search.strategy.kwargs.search_id", "sample.sampler.kwargs.search_id"):
        if not has_identities:
            old.ignore(key, "the row Block has no 'id'")
        elif old.given(key) is False:
            old.new.put("search.identity_probability", IDENTITY_PROBABILITY, key)


def _carry_data(old: _Released, stage: str) -> None:
    """The folder and the workers. A stage that does not run may lack the folder, as in some released files."""
    key = f"{stage}.data.data_dir"
    if old.given(f"{stage}.flag") is not True and old.given(key) is None:
        old.new.put(key, "not set", key)
    old.carry(key, key)
    old.new.origin[key] = key
    old.carry(f"{stage}.data.workers", f"{stage}.data.workers")


def _carry_sample(old: _Released) -> None:
    sampler = "sample.sampler.kwargs"
    old.carry("sample.flag", "sample.flag")
    _carry_data(old, "sample")
    _carry_batch_size(old, "sample")
    _carry_budget(old)
    # The released programs average the scores of both sides.
    old.new.put("sample.sides", "mean", "sample")
    for name, ours in (("pop_size", "population"), ("sample_num", "sample_num")):
        old.carry(f"{sampler}.{name}", f"sample.{ours}")
    old.carry(f"{sampler}.pop_size", "sample.initial_population")
    if old.chosen("sample.sampler.type", {"evolution": False, "random": True, None: False}):
        _carry_random_search(old)
    else:
        old.carry(f"{sampler}.n_gens", "sample.generations")
    load_name = old.given("sample.strategy.load_name")
    if isinstance(load_name, str) and (file := _checkpoint_name(load_name, old.given("search.strategy.max_epochs"))):
        old.new.put("sample.load_name", file, "sample.strategy.load_name")
    if old.given(f"{sampler}.init_pop") is False:
        raise UserError(f"{sampler}.init_pop: found False; it must be True: evolution starts with a random population")
    old.ignore(f"{sampler}.init_pop", "evolution always starts with a random population")
    old.ignore(f"{sampler}.cal_train_mode", "these networks have no batch norm to calibrate")
    old.ignore("sample.strategy.save_path", "search.strategy.save_path is used for all stages")
    for section in ("search.strategy.kwargs", sampler):
        _require_shared_heads(old, section)
        old.ignore(f"{section}.ps_num", "the identity probability is found by bisection")


def _carry_budget(old: _Released) -> None:
    sampler = "sample.sampler.kwargs"
    speed = old.given(f"{sampler}.GPU_search") is True
    names = ("GPUs_min", "GPUs_constraint") if speed else ("flops_min", "flops_constraint")
    if speed:
        old.ignore(f"{sampler}.flops_constraint", "GPU_search is on")
        old.ignore(f"{sampler}.flops_min", "GPU_search is on")
    else:
        old.ignore(f"{sampler}.GPUs_constraint", "GPU_search is off")
        old.ignore(f"{sampler}.GPUs_min", "GPU_search is off")
    old.needed(f"{sampler}.{names[1]}")
    old.new.put("sample.budget.minimum", 0, f"{sampler}.{names[0]}")
    for name, ours in zip(names, ("minimum", "maximum"), strict=True):
        old.carry(f"{sampler}.{name}", f"sample.budget.{ours}")
    convention = "images_per_second" if speed else "released"
    old.new.put("sample.budget.convention", convention, f"{sampler}.GPU_search")


def _carry_random_search(old: _Released) -> None:
    """A random search is an evolution of 0 generations; without a count, it scores as many as the evolution would."""
    sampler = "sample.sampler.kwargs"
    old.new.put("sample.generations", 0, "sample.sampler.type")
    count = old.given(f"{sampler}.search_num")
    key = f"{sampler}.search_num"
    if count is None:
        key, size, rounds = f"{sampler}.pop_size", old.given(f"{sampler}.pop_size"), old.given(f"{sampler}.n_gens")
        count = size * (rounds + 1) if isinstance(size, int) and isinstance(rounds, int) else size
    if count is not None:
        old.new.put("sample.initial_population", count, key)


def _carry_batch_size(old: _Released, stage: str) -> None:
    """Theirs is of all GPUs, ours of each; in evaluation it only influences memory."""
    key = f"{stage}.data.batch_size"
    old.carry(key, f"{stage}.batch_size", lambda size: min(size, 256) if isinstance(size, int) else size)
    old.ignore(f"{stage}.data.augmentation", "evaluation images are not augmented")


def _carry_test(old: _Released) -> None:
    strategy = "test.strategy"
    old.carry("test.flag", "test.flag")
    _carry_data(old, "test")
    _carry_batch_size(old, "test")
    if old.given(f"{strategy}.load_name") is not None:
        old.carry(f"{strategy}.load_name", "test.load_name")
        for name in ("start", "end", "strip"):
            old.ignore(f"{strategy}.{name}", "load_name overrides a range")
    else:
        _carry_range(old)
    old.ignore(f"{strategy}.save_path", "search.strategy.save_path is used for all stages")


def _carry_range(old: _Released) -> None:
    """Their epochs count from 0, ours from 1; their range excludes `end`, ours includes it."""
    strategy = "test.strategy"
    old.carry(f"{strategy}.start", "test.start", lambda start: start + 1 if is_integer(start) else start)
    # The last epoch of their range is end - 1 from 0, which is `end` from 1.
    old.carry(f"{strategy}.end", "test.end")
    old.carry(f"{strategy}.strip", "test.strip")
    if old.given(f"{strategy}.start") is not None:
        old.new.put("test.wait", True, strategy)


def _carry_architectures(old: _Released) -> None:
    """The models of retrain and test, as canonical texts."""
    for stage in ("retrain", "test"):
        where = next((w for w in (f"{stage}.model", "retrain.model") if old.given(w) is not None), None)
        if where is None or old.given(stage) is None:
            continue
        architecture, _ = read_model(old.given(where), where)
        old.new.put(f"{stage}.architecture", str(architecture), where)
        if stage == "retrain":
            old.carry(f"{where}.drop_path_rate", "retrain.drop_path_rate")
        for key in _TRAINED_MODEL:
            old.given(f"{stage}.model.{key}")
    old.ignore("test.model.drop_path_rate", "it only matters in training")


def _checkpoint_name(name: str, epochs: object) -> str | None:
    """Our name for a checkpoint of a released run; None for the newest."""
    match = re.fullmatch(r"epoch_(\d+)_ckpt\.pth\.tar", name)
    if name == "recent_ckpt.pth.tar" or (match and is_integer(epochs) and int(match[1]) + 1 >= epochs):
        return None
    return f"epoch_{int(match[1]) + 1}_ckpt.pth.tar" if match else name
