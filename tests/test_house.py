"""The house: what documentation names exists, and nothing grows beyond what one reads at once."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from mindcv_reparam.registry import families, models

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(REPOSITORY) for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
)
SOURCES = [*sorted((REPOSITORY / "mindcv_reparam").rglob("*.py")), *sorted(REPOSITORY.glob("*.py"))]
LONGEST_MODULE, LONGEST_FUNCTION = 400, 60  # lines
_NAMED = re.compile(r"(?<![\w/.-])(?:benchmarks|tests|configs)/[\w*./-]*[\w*]")


def missing(text: str) -> list[str]:
    """Paths under benchmarks/, tests/ and configs/ that ``text`` names and the repository lacks; ``*`` as in a glob."""
    return [named for named in _NAMED.findall(text) if not any(REPOSITORY.glob(named))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_that_documentation_names_exist(document):
    assert missing((REPOSITORY / document).read_text()) == []


def test_a_path_that_is_gone_is_found():
    text = (
        "`python benchmarks/input_steps.py --rounds 2`, configs/visformer/*.yaml, tests/test_house.py; runs/benchmarks."
    )
    assert missing(text) == ["benchmarks/input_steps.py"]


def test_types_are_checked_everywhere_and_what_is_ignored_says_why():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["mypy"]
    assert not {"overrides", "exclude", "disable_error_code", "ignore_errors"} & settings.keys()
    ignored = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for folder in settings["files"]
        for path in sorted((REPOSITORY / folder).rglob("*.py") if folder.isidentifier() else [REPOSITORY / folder])
        for line in path.read_text().splitlines()
        if "# type: ignore" in line
    ]
    assert [line for line in ignored if not re.search(r"# type: ignore\[[a-z-]+\]  # \w", line)] == []
    assert len(ignored) <= 12


def texts(tree: ast.AST) -> set[str]:
    """Names and strings of a module, docstrings aside."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.add(node.value)
        elif isinstance(node, documented[1:]):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


def test_only_its_own_file_knows_a_family():
    known = re.compile("|".join([*families(), *models()]), re.IGNORECASE)
    found = {
        f"{path.relative_to(REPOSITORY)}: {text}"
        for path in SOURCES
        if "models" not in path.parts
        for text in texts(ast.parse(path.read_text()))
        if known.search(text)
    }
    assert found == set()
    assert texts(ast.parse('"""visformer"""\nx = {"gfnet_h_ti": VisformerBlock}')) == {
        "x",
        "gfnet_h_ti",
        "VisformerBlock",
    }


def lines(name: str, source: str) -> dict[str, int]:
    """Lines of a module that exceed the limits: its own by ``name``, those of its functions by "name function"."""
    found = {name: source.count("\n")} if source.count("\n") > LONGEST_MODULE else {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST_FUNCTION:
                found[f"{name} {node.name}"] = length
    return found


def test_modules_and_functions_are_short():
    found = {}
    for path in SOURCES:
        found |= lines(path.relative_to(REPOSITORY).as_posix(), path.read_text())
    assert found == {}


def test_a_function_of_61_lines_and_a_module_of_401_are_found():
    function = "def grown():\n" + "    pass\n" * 60
    assert lines("module.py", function) == {"module.py grown": 61}
    assert lines("module.py", function.replace("    pass\n", "", 1)) == {}
    assert lines("module.py", "pass\n" * 401) == {"module.py": 401}
    assert lines("module.py", "pass\n" * 400) == {}


def thrown_away(tree: ast.AST) -> list[int]:
    """Lines that unpack something into ``_`` in a function with a loop."""
    return [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and any(isinstance(node, ast.For) for node in ast.walk(function))
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(name, ast.Name) and name.id == "_" for name in ast.walk(node.targets[0]))
    ]


def test_graphs_with_loops_unpack_nothing_that_they_do_not_use():
    """MindSpore would warn "Some side effect nodes were eliminated by mistake" whenever it compiles one."""
    models = (path for path in SOURCES if "models" in path.parts)
    assert {str(path): lines for path in models if (lines := thrown_away(ast.parse(path.read_text())))} == {}


def test_what_a_loop_s_graph_throws_away_is_found():
    loop = "    for i in range(n):\n        {} = x.shape\n"
    assert thrown_away(ast.parse("def construct(x):\n" + loop.format("_, size"))) == [3]
    assert thrown_away(ast.parse("def construct(x):\n" + loop.format("n, size"))) == []
    assert thrown_away(ast.parse("def construct(x):\n    _, size = x.shape\n")) == []
