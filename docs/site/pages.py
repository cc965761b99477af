"""Hooks of mkdocs: pages that lie outside docs/, links between them as they are in the repository, and the notebook.

The same Markdown is read on a code host and on the site. So a link is written as it leads in the repository, and is
turned here into one that leads on the site; where it leads to no page, such as a script, its text stays.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
# Pages of the site, and the files of the repository that they are.
ELSEWHERE = {
    "index.md": "README.md",
    "bench.md": "bench/README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
NOTEBOOK, NOTEBOOK_PAGE = "docs/notebooks/digits.ipynb", "notebook.md"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and the notebook as a page."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(REPOSITORY / source).read_text(encoding="utf-8")))
    content = notebook_page(json.loads((REPOSITORY / NOTEBOOK).read_text(encoding="utf-8")))
    files.append(File.generated(config, NOTEBOOK_PAGE, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page into the site's."""
    uri = page.file.src_uri
    source = NOTEBOOK if uri == NOTEBOOK_PAGE else ELSEWHERE.get(uri, f"docs/{uri}")
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda link: _on_site(link, source, uri), part) for part in parts
    )


def _on_site(link: re.Match[str], source: str, uri: str) -> str:
    """source: the file that a link is in, in the repository. uri: its page."""
    image, text, target = link.groups()
    path, hash_, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not path:
        return link[0]
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = {file: page for page, file in ELSEWHERE.items()}.get(reached)
    if reached == NOTEBOOK and source != NOTEBOOK:
        page = NOTEBOOK_PAGE
    if page is None and not reached.startswith("docs/"):
        return text
    leads_to = page or reached.removeprefix("docs/")
    return f"{image}[{text}]({posixpath.relpath(leads_to, posixpath.dirname(uri) or '.')}{hash_}{anchor})"


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook with its outputs as Markdown: text, code, printed lines and pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                parts.append(f'<div class="output">{_joined(data["image/svg+xml"])}</div>')
            elif "image/png" in data:
                picture = _joined(data["image/png"]).strip()
                parts.append(
                    f'<img class="output" alt="output of the cell above" src="data:image/png;base64,{picture}">'
                )
            elif text := _joined(output.get("text", data.get("text/plain", ""))):
                parts.append(f'<pre class="output"><code>{html.escape(text.rstrip())}</code></pre>')
    return "\n\n".join(parts) + "\n"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)
