"""Seeds of random streams. A draw's seed depends on what it is for, so a resumed run needs no generator's state."""

from __future__ import annotations

from hashlib import blake2b


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the random stream called `names`, e.g. `("subnets", chunk)`.

    It depends on nothing else, so all ranks draw the same, also after a restart.
    """
    digest = blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
