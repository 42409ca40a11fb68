"""What `pip install .` brings: everything that the package imports, and all of its files."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mindcv_reparam"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LISTED = [
    Requirement(line) for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
]
TESTED = [
    Requirement(line.partition("#")[0])
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def imported() -> set[str]:
    """Top-level modules of others that the package imports anywhere."""
    found = set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / f"{name}.py" for name in ("train", "validate", "export"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"mindcv_reparam"}


def test_every_import_is_listed():
    distributions = packages_distributions()
    listed = {canonicalize_name(requirement.name) for requirement in LISTED}
    optional = {"mindspore_lite", "torch"}  # asked for by a user's own files or hardware, with a line that says so
    unlisted = {
        module
        for module in imported() - optional
        if not {canonicalize_name(name) for name in distributions.get(module, [module])} & listed
    }
    assert unlisted == set()


@pytest.mark.parametrize("tested", TESTED, ids=lambda requirement: requirement.name)
def test_the_tested_version_is_in_the_range(tested):
    ranges = [listed for listed in LISTED if canonicalize_name(listed.name) == canonicalize_name(tested.name)]
    assert ranges, f"{tested.name} is in requirements.txt and not in pyproject.toml"
    (version,) = (specifier.version for specifier in tested.specifier)
    for listed in ranges:
        assert listed.specifier.contains(version), f"{tested.name} {version} is not in {listed.specifier}"


@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ("2.6.0", False),
        ("2.7.0", True),
        ("2.7.2", True),
        ("2.8.0", True),
        ("2.9.0", True),
        ("2.10.0", True),
        ("2.11.0", False),
    ],
)
def test_installing_keeps_a_mindspore_that_a_cluster_asks_for(version, kept):
    (listed,) = (requirement for requirement in LISTED if requirement.name == "mindspore")
    assert listed.specifier.contains(version) == kept


def test_running_needs_no_test_tools():
    tools = {
        "pytest",
        "pytest-xdist",
        "pytest-timeout",
        "ruff",
        "tritonclient",
        "schemathesis",
        "psutil",
        "mypy",
        "types-PyYAML",
        "pycocotools",
    }
    running, development, documentation = (
        {Requirement(line).name for line in lines} for lines in (PROJECT["dependencies"], EXTRAS["dev"], EXTRAS["docs"])
    )
    assert not running & (tools | documentation)
    assert development <= tools


@pytest.mark.slow
def test_an_installed_package_is_whole(tmp_path):
    """Every file of the tree is in the wheel, and its commands run from somewhere else."""
    source = tmp_path / "source"  # the build leaves its files there
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert re.search(r"mindcv-reparam\s*=\s*mindcv_reparam\.__main__:script", archive.read(entry_points).decode())
        archive.extractall(tmp_path / "site")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)}
    code = "from mindcv_reparam.__main__ import script; script()"
    for words, status, shown in (
        ("--version", 0, "mindcv_reparam "),
        ("list fastvit_t*", 0, "fastvit_t8"),
        ("train --help", 0, "usage: mindcv-reparam train [-c FILE]"),
        ("validate --ckpt_path lost.ckpt", 2, "error: no checkpoint at lost.ckpt"),
        ("export --ckpt_path lost.ckpt", 2, "error: no checkpoint at lost.ckpt"),
    ):
        command = [sys.executable, "-c", code, *words.split()]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == status, result.stderr
        assert shown in (result.stderr if status else result.stdout)
