"""What the documentation tells to type is what the programs take; nothing is run."""

import importlib
import re
import shlex

import pytest
from test_house import DOCUMENTS, REPOSITORY

from mindcv_reparam import commands
from mindcv_reparam.config import add_settings, configuration
from mindcv_reparam.errors import Parser, UserError
from mindcv_reparam.registry import VARIABLE, families, models

SCRIPTS = ("train", "validate", "export")
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_START = re.compile(r"(?:mpirun -n \d+ )?(?:python -m mindcv_reparam|mindcv-reparam|python (\w+)\.py)\b")


def command_lines(text: str) -> list[str]:
    """What follows the prompts of the console blocks, continued lines joined."""
    lines = [line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def spoken(line: str) -> tuple[str, list[str]] | None:
    """A line's command of this project and its words; None where it is none."""
    found = _START.match(line)
    if found is None or found[1] not in (None, *SCRIPTS):
        return None
    words = shlex.split(line[found.end() :], comments=True)
    words = words[: words.index("&")] if "&" in words else words
    return found[1] or words.pop(0), words


def parse(line: str) -> None:
    """Give a line's words to its command; raises UserError where it does not take them."""
    name, words = spoken(line) or ("", [])
    parser = Parser(prog=name)
    if name in SCRIPTS:
        add_settings(parser, name)
        arguments = parser.parse_args(words)
        recipe = getattr(arguments, "config", None)
        if recipe and not recipe.startswith("configs/"):  # what a run before has written
            del arguments.config
        configuration(arguments, name)
    elif name:
        importlib.import_module(f"mindcv_reparam.commands.{name}").add_arguments(parser)
        parser.parse_args(words)


@pytest.fixture
def families_of(monkeypatch):
    """The zoo with the families that the variable names; afterwards as before."""

    def take(value: str) -> None:
        monkeypatch.setenv(VARIABLE, str(REPOSITORY / value))
        forget()

    def forget() -> None:
        families.cache_clear()
        models.cache_clear()

    yield take
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_are_taken(document, families_of):
    for line in command_lines((REPOSITORY / document).read_text()):
        try:
            if line.startswith(f"export {VARIABLE}="):
                families_of(line.partition("=")[2])
            parse(line)
        except UserError as error:
            pytest.fail(f"{line}: {error}")


def test_commands_of_the_overview_are_taken():
    spans = re.findall(r"`(python [^`]+)`", (REPOSITORY / "docs/index.md").read_text())
    assert len(spans) > 12
    for line in spans:
        parse(line)


def test_the_tutorials_go_through_the_commands():
    lines = [line for document in DOCUMENTS for line in command_lines((REPOSITORY / document).read_text())]
    found = {words[0] for line in lines if (words := spoken(line))}
    assert found >= commands.summaries().keys()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python train.py --model fastvit_t8 --epochs 3", "unknown flag --epochs"),
        ("mpirun -n 2 python train.py -c configs/none.yaml", "cannot read the configuration"),
        ("python export.py --ckpt_path a.ckpt --file_format ONXX  # a comment", "--file_format must be"),
        ("mindcv-reparam convert a.pth --to timm", "required: -o/--output"),
        ("python -m mindcv_reparam serve b --prt 1 &", "unknown flag --prt"),
    ],
)
def test_a_command_that_is_wrong_is_found(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_python_of_the_documentation_imports_what_is_there(document):
    for block in PYTHON_BLOCK.findall((REPOSITORY / document).read_text()):
        compile(block, str(document), "exec")
        for module, names in re.findall(r"^from (mindcv_reparam[\w.]*) import ([\w, ]+)", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name.strip()), f"{module} has no {name}"
