"""The plotting library that goes into a page: Vega, Vega-Lite and vega-embed, as vl-convert bundles them.

Making the bundle takes two seconds, so it is kept in the user's cache, by vl-convert's version.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vitas.errors import UserError
from vitas.files import write_text
from vitas.plain_data import read_text

PACKAGE = "vl-convert-python"


def vl_convert() -> Any:
    """The module that draws specifications. Raises `UserError` where it is not installed."""
    try:
        import vl_convert
    except ImportError:
        raise UserError(f"the report needs {PACKAGE}: pip install 'vitas[report]'") from None
    return vl_convert


def bundle() -> str:
    """JavaScript that defines `vega`, `vegaLite` and `vegaEmbed`. Raises `UserError` as `vl_convert` does."""
    module = vl_convert()
    kept = _cache() / f"vega-of-vl-convert-{version(PACKAGE)}.js"
    with suppress(UserError):
        text = read_text(kept)
        # A file that another program cut short is made anew.
        if text.endswith(_END):
            return text
    text = str(module.javascript_bundle()) + _END
    # A home that cannot be written to only costs two seconds each time.
    with suppress(UserError, OSError):
        write_text(kept, text, mode=0o600)
    return text


_END = "\n// whole\n"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitas"
