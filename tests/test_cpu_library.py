"""Building and loading the CPU kernels: what is damaged is built anew, and what cannot be had is one line."""

import ctypes
import importlib.util
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mindspore import nn

from mindcv_reparam.cpu import library as kernels
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.files import cache_folder
from mindcv_reparam.layers import gelu

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and one small source in place of the kernels."""
    source = tmp_path / "answer.cc"
    source.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(kernels, "SOURCES", [source])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    kernels.library.cache_clear()
    yield tmp_path / "cache" / "mindcv_reparam"
    kernels.library.cache_clear()


def answer(path: Path) -> int:
    """Of the operator in a library, from a process of its own, which a damaged one may end."""
    onednn, _ = kernels._onednn()  # which the library asks for
    code = f"import ctypes; ctypes.CDLL({str(onednn)!r}); print(ctypes.CDLL({str(path)!r}).answer())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def assert_one_line(caplog, *words: str) -> None:
    """The kernels are not there, which the log says once and why, and a network stays as it is."""
    with caplog.at_level(logging.INFO):
        assert kernels.library() is None
        net = use_kernels(nn.SequentialCell(gelu("exact")))
    assert type(net[0]) is nn.GELU
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    for word in ("MindSpore's own operators run", *words):
        assert word in record.getMessage()


@pytest.mark.parametrize("damage", ["empty", "cut off", "a byte", "its end"])
def test_a_damaged_library_is_built_anew(cache, damage):
    path = kernels.library()
    whole = path.read_bytes()
    path.unlink()  # this process has mapped it, and would die at its end of what is missing in it
    path.write_bytes(
        {
            "empty": b"",
            "cut off": whole[: len(whole) // 3],
            "a byte": whole[:700] + bytes([whole[700] ^ 8]) + whole[701:],
            "its end": whole[:-1],
        }[damage]
    )
    kernels.library.cache_clear()
    assert kernels.library() == path
    assert answer(path) == 42
    assert path.read_bytes() == whole


def test_what_is_whole_is_not_built_again(cache):
    path = kernels.library()
    before = path.stat()
    kernels.library.cache_clear()
    assert kernels.library() == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [left.name for left in cache.iterdir()] == [path.name]


def test_two_builders_of_one_process_number_do_not_disturb_each_other(cache):
    together, found = threading.Barrier(4), []

    def build():
        together.wait()
        found.append(kernels._build())

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert answer(found[0]) == 42
    assert len(list(cache.iterdir())) == 1


def test_a_compiler_of_several_words(cache, monkeypatch, tmp_path):
    wrapper = script(tmp_path / "in front of it", 'exec "$@"')
    monkeypatch.setenv("CXX", f"'{wrapper}' g++")
    assert answer(kernels.library()) == 42


def test_another_version_of_the_compiler_and_another_processor_are_another_library(cache, monkeypatch, tmp_path):
    paths = set()
    for version in (1, 2):
        text = f'[ "$1" = --version ] && echo {version} && exit; exec g++ "$@"'
        monkeypatch.setenv("CXX", script(tmp_path / "compiler", text))
        for flags in ({"asimd"}, {"asimd", "sve"}):
            monkeypatch.setattr(kernels, "cpu_flags", lambda flags=flags: frozenset(flags))
            paths.add(kernels._build())
    assert len(paths) == 4


@pytest.mark.parametrize(
    ("compiler", "word"),
    [
        ("no-such-compiler", "no C++ compiler no-such-compiler"),
        ("/dev/null", "no C++ compiler /dev/null"),
        ("'g++", "CXX='g++ is no command"),
        ("false", "status 1"),
        ("true", "No such file"),  # ends well and writes nothing
    ],
)
def test_without_a_compiler_nothing_changes(cache, monkeypatch, caplog, compiler, word):
    monkeypatch.setenv("CXX", compiler)
    assert_one_line(caplog, word)


def test_a_failed_build_is_named_and_leaves_nothing(cache, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "--no-such-flag"))
    assert_one_line(caplog, "no-such-flag")
    assert not list(cache_folder().iterdir())


def test_what_cannot_be_loaded_is_named(cache, monkeypatch, tmp_path, caplog):
    text = 'while [ "$1" != -o ]; do [ "$1" = --version ] && exit; shift; done; echo nothing > "$2"'
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", text))
    assert_one_line(caplog, str(cache))


def test_a_loader_that_refuses(cache, monkeypatch, caplog):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object: Operation not permitted")

    kernels._build()
    monkeypatch.setattr(ctypes, "CDLL", refuse)  # as on a file system mounted noexec
    assert_one_line(caplog, "failed to map segment")


@pytest.fixture
def unknown_onednn():
    """oneDNN is looked for again."""
    kernels._onednn.cache_clear()
    yield
    kernels._onednn.cache_clear()


@pytest.mark.parametrize(("name", "value"), [("_MINOR", 99), ("_THREADPOOL", 4)])
def test_another_onednn_is_not_used(cache, unknown_onednn, monkeypatch, caplog, name, value):
    monkeypatch.setattr(kernels, name, value)
    assert_one_line(caplog, " is oneDNN ")


def test_without_onednn_nothing_changes(cache, unknown_onednn, monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_one_line(caplog, "has no oneDNN")


@pytest.mark.slow
def test_odd_shapes_under_sanitizers(tmp_path):
    onednn, _ = kernels._onednn()
    # With -g for the lines of what is found; it compiles for twice the time.
    flags = ["-std=c++17", "-O0", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    folder, program = kernels.SOURCES[0].parent, tmp_path / "program"
    files = [Path(__file__).with_name("kernels_on_odd_shapes.cc"), *folder.glob("*.cc"), onednn]
    command = ["g++", *flags, f"-I{folder}", *map(str, files), f"-Wl,-rpath,{onednn.parent}", "-o", str(program)]
    subprocess.run(command, check=True)
    environ = os.environ | {"OMP_NUM_THREADS": "3", "ASAN_OPTIONS": "detect_leaks=0"}  # primitives are kept to the end
    environ.pop("LD_PRELOAD", None)  # the sanitizers bring an allocator of their own
    ended = subprocess.run([str(program)], env=environ, capture_output=True, text=True)
    assert ended.stdout + ended.stderr == "well\n"
    assert ended.returncode == 0


def test_a_cache_that_cannot_be_written(cache, monkeypatch, caplog, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_one_line(caplog, str(tmp_path / "file"))


def test_a_cache_of_another_user(cache, monkeypatch, caplog):
    path = kernels.library()
    kernels.library.cache_clear()
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert_one_line(caplog, "another user's", "XDG_CACHE_HOME")


def test_a_colon_in_the_path(cache, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "C:"))
    assert_one_line(caplog, "colon", "XDG_CACHE_HOME")


def test_mindspores_list_of_allowed_folders(cache, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MS_CUSTOM_AOT_WHITE_LIST", str(tmp_path / "elsewhere"))
    assert_one_line(caplog, "MS_CUSTOM_AOT_WHITE_LIST")


def test_no_home(cache, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert_one_line(caplog, "no home", "XDG_CACHE_HOME")


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_a_relative_cache_is_not_used(cache, monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)  # as the specification has it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kernels.library().parent == tmp_path / "home/.cache/mindcv_reparam"
