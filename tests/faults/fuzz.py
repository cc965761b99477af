"""What strangers' files are made of: mutated texts, mutated data and grammars, and the bounds that reading them keeps.

`VITAS_FUZZ_EXAMPLES` is the number of examples of each format: a few by default,
always the same ones; 100,000 are a campaign, with other ones in every run.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import hypothesis
import yaml
from hypothesis import HealthCheck
from hypothesis import strategies as st

from vitas.errors import UserError

Result = TypeVar("Result")

GIVEN = os.environ.get("VITAS_FUZZ_EXAMPLES")
# Of one input: seconds of computing, and memory beside what the process has.
SECONDS = 10
BYTES = 2**29
# What a message may take to read.
MESSAGE = 50_000


def fuzzed(share: float = 1.0) -> hypothesis.settings:
    """Settings of a fuzz test. share: of the examples, where one takes long."""
    return hypothesis.settings(
        max_examples=max(10, int(share * int(GIVEN or 200))),
        derandomize=GIVEN is None,
        suppress_health_check=list(HealthCheck),
    )


class TooSlow(BaseException):
    """Reading an input takes longer than `SECONDS`. No handler of errors stops it."""


@contextmanager
def bounded(most: int = BYTES) -> Iterator[None]:
    """Let what is within take `SECONDS` and `most` bytes; more is an `AssertionError`, or a `MemoryError`."""

    def stop(*_) -> None:
        raise TooSlow

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGVTALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (held + most, hard))
    # The process's own time, so that a busy machine changes nothing.
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except TooSlow:
        raise AssertionError(f"it takes more than {SECONDS} s") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def read_or_refused(read: Callable[[], Result]) -> Result | None:
    """What `read` returns; None where it raises `UserError`. Any other exception fails the test, as the bounds do."""
    with bounded():
        try:
            return read()
        except UserError as error:
            message = str(error)
    assert message.strip()
    assert len(message) < MESSAGE
    return None


# Values where others are expected: of each type, the ends of its range and beyond.
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    255,
    256,
    257,
    2**16,
    2**31,
    2**63,
    10**18,
    10**30,
    10**63,
    -(10**20),
    0.0,
    -0.0,
    0.5,
    1e-320,
)
_ODD_NUMBERS = (1e308, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    "", " ", "best", "null", "true", "1e999", "../..", "/", "/dev/zero", "a" * 5000, "x.yaml", "x.yaml:y", "\n", "\x7f",
    "p16-e230-token-h3q432m720x12", "p16-e230-token-h3q432m720x100000000", "p16-e64-mean-idx99999", "٣", "1" * 5000,
    "8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180", "8,2,3|4,1,2|4,1,4|4,1,6|32", "9" * 9 + ",2,3|4,1,2|4,1,4|4,1,6|32",
    "blocks.0", "blocks.99999999999999999999", "rand-m9-mstd0.5-inc1", "rand-m" + "9" * 5000, "vitas_a", "deit_tiny",
)  # fmt: skip
scalars = st.one_of(
    st.sampled_from(_NUMBERS),
    st.sampled_from(_ODD_NUMBERS),
    st.sampled_from(_WORDS),
    st.none() | st.booleans(),
    st.integers(-10, 400),
    st.floats(0, 1),
    st.text(max_size=8),
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=4),
    st.dictionaries(
        st.sampled_from(("heads", "net_id", "blocks", "stages", "flag", "repeat", "a")), scalars, max_size=3
    ),
    st.just(list(range(1, 400))),
    st.just([[[]]]),
)


def places(data: object, path: tuple = ()) -> Iterator[tuple]:
    """Where the values of plain data are: the keys and indices that lead to each."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def changed_data(draw, seeds: Sequence[object]) -> object:
    """Valid plain data with a few values replaced, left out, moved, doubled or renamed."""
    data = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(data))
        if not found:
            return copy.deepcopy(draw(values))
        *parents, last = draw(st.sampled_from(found))
        inside = data
        for key in parents:
            inside = inside[key]
        change = draw(st.sampled_from(("replace", "replace", "replace", "drop", "copy", "rename", "scale", "double")))
        if change == "replace":
            # A copy, as the same value may be drawn again, and is changed here.
            inside[last] = copy.deepcopy(draw(values))
        elif change == "drop":
            del inside[last]
        elif change == "copy":
            *others, name = draw(st.sampled_from(found))
            value: object = data
            for key in (*others, name):
                value = value[key] if key in (value if isinstance(value, dict) else range(len(value))) else None
                if not isinstance(value, dict | list):
                    break
            inside[last] = copy.deepcopy(value)
        elif change == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from((f"{last}s", str(last)[:-1], "net_id", "repeat", "x")))] = inside.pop(last)
        elif change == "scale" and isinstance(inside[last], int | float):
            inside[last] *= draw(st.sampled_from((-1, 0, 2, 1.5, 7, 1000, 10**9)))
        elif change == "double" and isinstance(inside[last], list):
            inside[last] = inside[last] * draw(st.sampled_from((2, 20)))
    return data


# Pieces of YAML, JSON and our texts that stand for something.
_PIECES = (
    "&a", "*a", "&a [*a]", "<<: *a", "<<:", "!!timestamp x", "!!bool x", "!!float ''", "!!int ''", "!!binary x",
    "!!null x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!python/name:os.system ''", "!!map", "!!seq",
    "!!str", "!x", "!<x>", "%YAML 1.1", "%TAG ! x", "---", "...", "? ", ": ", "- ", "|", ">", "|9", "[", "]", "{",
    "}", ",", "#", "'", '"', '"\\x00"', '"\\ud800"', '"\\UFFFFFFFF"', "@", "`", "\t", "\n", "\r", "\x00", "\x85",
    "\u2028", "\ufeff", "~", "null", "true", "=", "0x", "0x" + "f" * 60, "0b1", "0777", "1_0", "1e999", ".inf",
    ".nan", "-", "1" * 70, "9" * 5000, "12:00:00", "2020-01-01", "NaN", "Infinity", "-Infinity", "{}", "[]",
    "x100000000", "x0", "-id", "idx9999", "h3q9m1", "h0q0m0", "e0", "p0", "|", ",", "٣", "²", "é", "\U0001f600",
    "a" * 300, "[" * 100, "{a: " * 100, "- " * 100,
)  # fmt: skip


@st.composite
def changed_text(draw, seeds: Sequence[str]) -> str:
    """A valid text with a few pieces cut out, put in, doubled or swapped."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from((0, 0, 1, 1, 2, 5, 20, 200))))
        change = draw(st.sampled_from(("put", "put", "cut", "double", "many", "end", "text")))
        if change == "put":
            text = text[:start] + draw(st.sampled_from(_PIECES)) + text[stop:]
        elif change == "text":
            text = text[:start] + draw(st.text(max_size=5)) + text[stop:]
        elif change == "cut":
            text = text[:start] + text[stop:]
        elif change == "double":
            text = text[:stop] + text[start:stop] + text[stop:]
        elif change == "many":
            text = text[:stop] + text[start:stop] * draw(st.sampled_from((10, 1000))) + text[stop:]
        elif change == "end":
            text = text[:start]
    return text


_ENDS = (0, 1, -1, 2**15, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**40, 8, 64, 4096)


@st.composite
def changed_bytes(draw, content: bytes) -> bytes:
    """A file with some bits flipped, numbers replaced, or parts left out, doubled or moved."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # What describes the data lies at the beginning and the end.
        near = st.integers(0, 1500) | st.integers(max(0, len(changed) - 1500), len(changed))
        at = min(draw(near | st.integers(0, len(changed))), max(0, len(changed) - 8))
        kind = draw(st.sampled_from(("flip", "flip", "number", "number", "number", "cut", "double")))
        if kind == "flip" and len(changed):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number" and len(changed) >= 8:
            size = draw(st.sampled_from((2, 4, 4, 8)))
            number = draw(st.sampled_from(_ENDS)) % 256**size
            at -= at % size
            changed[at : at + size] = number.to_bytes(size, draw(st.sampled_from(("little", "little", "big"))))
        elif kind == "cut":
            del changed[at : at + draw(st.sampled_from((1, 8, 64, 10_000)))]
        elif kind == "double":
            changed[at:at] = changed[at : at + draw(st.sampled_from((1, 8, 64, 512)))]
    return bytes(changed)


def _node(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    keys = st.one_of(st.sampled_from(("a", "b", "<<", "? [a]", "1", "null", "=", "*a", "&a k", "!!str k")), children)
    lists = st.lists(children, max_size=9).map(lambda parts: f"[{', '.join(parts)}]")
    pairs = st.lists(st.tuples(keys, children), max_size=5)
    mappings = pairs.map(lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}")
    anchored = st.tuples(st.sampled_from(("&a ", "&b ", "&c ", "!!set ", "!!map ", "!!seq ", "!!omap ")), children)
    return lists | mappings | anchored.map("".join)


# YAML by its grammar, in flow style: aliases, tags, merge keys and odd keys inside each other.
yaml_by_grammar = st.recursive(st.sampled_from(("*a", "*b", "*c", *_PIECES)), _node, max_leaves=40)


@st.composite
def yaml_bombs(draw) -> str:
    """YAML of a few hundred characters that stands for a great many values."""
    levels, width = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    kind = draw(st.sampled_from(("list", "mapping", "merge", "chain")))
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        before = f"*a{level - 1}"
        body = {
            "list": f"[{', '.join([before] * width)}]",
            "mapping": "{" + ", ".join(f"k{i}: {before}" for i in range(width)) + "}",
            "merge": f"{{<<: [{', '.join([before] * width)}], k{level}: {before}}}",
            "chain": f"{{k: {before}}}",
        }[kind]
        lines.append(f"a{level}: &a{level} {body}")
    return "\n".join(lines)


def as_text(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    """Plain data as YAML."""
    return strategy.map(lambda data: yaml.safe_dump(data, sort_keys=False))


def yaml_like(*seeds: str) -> st.SearchStrategy[bytes]:
    """Files that are nearly, or not at all, like the given ones of YAML."""
    data = [yaml.safe_load(seed) for seed in seeds]
    return st.one_of(
        as_text(changed_data(data)),
        as_text(changed_data(data)),
        as_text(changed_data(data)),
        changed_text(seeds),
        yaml_by_grammar,
        yaml_bombs(),
        as_text(values),
        st.text(max_size=50),
        # A file of one section, and then something else.
        st.tuples(st.sampled_from(seeds), yaml_by_grammar).map("\n".join),
    ).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=50)


def json_lines_like(*records: dict) -> st.SearchStrategy[bytes]:
    """Journals that are nearly, or not at all, like one of the given records, the first of which stays first."""
    changed = changed_data(list(records[1:])).map(json.dumps)
    odd = st.sampled_from(("{}", "[]", "null", "NaN", "1e999", '""', "", "{", "[" * 10_000, '{"a":' * 5000, "9" * 5000))
    line = st.one_of(
        changed, changed, changed, odd, changed_text([json.dumps(r) for r in records[1:]]), values.map(json.dumps)
    )
    whole = [json.dumps(record) for record in records]
    lines = st.lists(line | st.sampled_from(whole), max_size=4)
    text = lines.map(lambda found: "\n".join([whole[0], *found, ""]))
    return st.one_of(text, text, text, lines.map("\n".join), changed_text(["\n".join([*whole, ""])])).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ) | st.binary(max_size=50)
