"""Translated documents say what the English ones do, as far as that can be compared: commands, code and tables."""

import re
from collections import Counter
from pathlib import Path

import pytest
from test_house import DOCUMENTS, REPOSITORY

TRANSLATED = [path for path in DOCUMENTS if path.name.endswith(".zh-CN.md")]
_FENCED = re.compile(r"^```[^\n]*\n.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def sections(text: str) -> list[str]:
    """What stands before the first heading of the second level or lower, and below each."""
    return re.split(r"^##+ .*$", text, flags=re.MULTILINE)


def facts(text: str) -> list[tuple[list[str], list[Counter[str]], set[str]]]:
    """By section: its fenced blocks, what code and numbers each row of its tables has, and all code."""
    fenced = _FENCED.findall(text)
    plain = _FENCED.sub("", text)
    found = []
    for section in sections(_FENCED.sub("\n@block\n", text)):
        blocks = [fenced.pop(0) for line in section.splitlines() if line == "@block"]
        rows = [line for line in section.splitlines() if line.startswith("|")]
        cells = [Counter([*_CODE.findall(row), *_NUMBER.findall(_CODE.sub("", row))]) for row in rows]
        found.append((blocks, cells, set(_CODE.findall(section.replace("\n", " ")))))
    assert len(found) == len(sections(plain))
    return found


def original(path: Path) -> Path:
    return path.with_name(path.name.replace(".zh-CN", ""))


def test_there_are_translations():
    assert {str(path) for path in TRANSLATED} >= {"README.zh-CN.md", "docs/deploy-ascend.zh-CN.md"}


@pytest.mark.parametrize("path", TRANSLATED, ids=str)
def test_commands_and_tables_are_the_english_ones(path):
    english = facts((REPOSITORY / original(path)).read_text())
    translated = facts((REPOSITORY / path).read_text())
    assert len(translated) == len(english)
    for there, here in zip(english, translated, strict=True):
        assert here == there


@pytest.mark.parametrize("path", TRANSLATED, ids=str)
def test_both_point_to_one_another(path):
    assert f"]({path.name})" in (REPOSITORY / original(path)).read_text()
    assert f"]({original(path).name})" in (REPOSITORY / path).read_text()


@pytest.mark.parametrize(
    ("english", "translated"),
    [
        ("# A\n```console\n$ a --b 1\n```\n", "# 甲\n```console\n$ a --b 2\n```\n"),
        ("# A\n| a | 2.5 |\n", "# 甲\n| 甲 | 2.4 |\n"),
        ("# A\n| `a` | b |\n", "# 甲\n| `b` | 乙 |\n"),
        ("# A\n`--flag` does\n", "# 甲\n`--flags` 是\n"),
        ("# A\n\n## B\n`x`\n\n## C\n", "# 甲\n\n## 乙\n\n## 丙\n`x`\n"),
    ],
)
def test_what_differs_is_found(english, translated):
    assert facts(english) != facts(translated)
