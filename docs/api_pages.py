"""For MkDocs: a page of the API for every room of the package, and references as the docstrings write them.

Everything is read from the sources, by griffe; nothing is imported.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "mindcv_reparam"
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`([\w.]+)`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``api/ROOM.md`` for every module and folder of the package."""
    for path in sorted(PACKAGE.iterdir()):
        if (path.suffix == ".py" and not path.stem.startswith("__")) or (path / "__init__.py").exists():
            text = f"# {path.stem}\n\n::: {PACKAGE.name}.{path.stem}\n"
            files.append(File.generated(config, f"api/{path.stem}.md", content=text))
    return files


class References(griffe.Extension):
    """``:func:`name``` and its like become links, to what the name stands for where the docstring is."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"[`\1`][\1]", obj.docstring.value)
