"""Setting MindSpore up: oneDNN's limit, NumPy's version, devices, threads, seeds and the log."""

import logging
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from unittest import mock

import mindspore as ms
import numpy as np
import pytest

from mindcv_reparam import owner, runtime
from mindcv_reparam.commands import train, validate
from mindcv_reparam.distributed import launched
from mindcv_reparam.errors import Parser, UserError

REPOSITORY = Path(__file__).parents[1]
CPUINFO = """\
processor\t: 0
model name\t: Some CPU
flags\t\t: fpu sse2 avx avx2 {}

processor\t: 1
flags\t\t: other
"""


@pytest.fixture
def cpuinfo(tmp_path):
    def write(more: str) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(CPUINFO.format(more))
        return path

    return write


def test_flags_of_the_first_processor(cpuinfo, tmp_path):
    assert runtime.cpu_flags(cpuinfo("avx512f")) == {"fpu", "sse2", "avx", "avx2", "avx512f"}
    assert runtime.cpu_flags(tmp_path / "missing") == frozenset()
    aarch64 = tmp_path / "aarch64"
    aarch64.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert runtime.cpu_flags(aarch64) == {"fp", "asimd"}


@pytest.mark.parametrize(
    ("flags", "machine", "needed"),
    [
        ({"avx2", "avx512f"}, "x86_64", True),
        ({"avx2", "avx512f"}, "AMD64", True),
        ({"avx2"}, "x86_64", False),
        ({"avx512f"}, "aarch64", False),
    ],
)
def test_onednn_is_limited_on_x86_with_avx512_only(flags, machine, needed):
    assert runtime.needs_onednn_cap(flags, machine) is needed


@pytest.mark.parametrize("name", runtime.ISA_VARIABLES)
def test_a_limit_set_by_the_user_is_seen(name):
    assert runtime.isa_setting({name: "AVX512_CORE"}) == f"{name}=AVX512_CORE"
    assert runtime.isa_setting({}) is None


PREPARE = """
import logging, os, sys
from pathlib import Path
from mindcv_reparam import runtime
runtime.cpu_flags.__defaults__ = (Path(sys.argv[1]),)
runtime.platform.machine = lambda: "x86_64"
if "early" in sys.argv:
    import mindspore
runtime.show_log()
runtime.prepare("CPU")
print(os.environ.get("ONEDNN_MAX_CPU_ISA"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "variable", "early", "setting", "log"),
    [
        ("avx512f", None, "", "AVX2", ["set ONEDNN_MAX_CPU_ISA=AVX2"]),
        ("avx512f", None, "early", "AVX2", ["imported before ONEDNN_MAX_CPU_ISA=AVX2"]),
        # What is needed and what is set are functions that are tested above.
        pytest.param("avx512f", "AVX512_CORE", "", "AVX512_CORE", [], marks=pytest.mark.exhaustive),
        pytest.param("", None, "", "None", [], marks=pytest.mark.exhaustive),
    ],
)
def test_prepare_limits_onednn_in_one_log_line(cpuinfo, more, variable, early, setting, log):
    environ = {k: v for k, v in os.environ.items() if k not in runtime.ISA_VARIABLES} | {"PYTHONPATH": str(REPOSITORY)}
    environ |= {"ONEDNN_MAX_CPU_ISA": variable} if variable else {}
    command = [sys.executable, "-c", PREPARE, str(cpuinfo(more)), early]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [setting]
    lines = [line for line in ended.stderr.splitlines() if "ISA" in line]
    assert len(lines) == len(log)
    assert all(words in line for words, line in zip(log, lines, strict=True))


PLAIN = """
import os, sys
from pathlib import Path
from mindcv_reparam import create_model, runtime
runtime.cpu_flags.__defaults__ = (Path(sys.argv[1]),)
runtime.platform.machine = lambda: "x86_64"
create_model("visformer_tiny", num_classes=10)
print(os.environ.get("ONEDNN_MAX_CPU_ISA"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "setting"), [("avx512f", "AVX2"), pytest.param("", "None", marks=pytest.mark.exhaustive)]
)
def test_a_network_built_in_a_notebook_has_the_limit_too(cpuinfo, more, setting):
    environ = {k: v for k, v in os.environ.items() if k not in runtime.ISA_VARIABLES} | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PLAIN, str(cpuinfo(more))]
    assert subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split() == [setting]


# With a limit below AVX2, which every processor here has, what oneDNN may use in the end tells whether it was lifted.
LIFT = """
import sys
from pathlib import Path
from mindcv_reparam import runtime
runtime.cpu_flags.__defaults__ = (Path(sys.argv[1]),)
runtime.platform.machine = lambda: "x86_64"
runtime.ONEDNN_LIMIT = "AVX"
runtime.show_log()
runtime.prepare("CPU")
import numpy as np
from mindspore import Tensor, float32, nn
from mindcv_reparam.cpu import use_kernels
from mindcv_reparam.cpu.library import _onednn
from mindcv_reparam.layers import conv2d
x = Tensor(np.ones((1, 3, 8, 8)), float32)
net = nn.SequentialCell(conv2d(3, 4, 3))
if "before" in sys.argv:
    net(x)
    net = nn.SequentialCell(conv2d(3, 4, 3))
if "other" in sys.argv:
    net.append(nn.Conv2dTranspose(4, 4, 3))
print(use_kernels(net, alone="alone" in sys.argv)(x).shape)
print(hex(_onednn()[1].dnnl_get_effective_cpu_isa()))
"""


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in runtime.cpu_flags(), reason="needs a processor with AVX2")
@pytest.mark.parametrize(
    ("words", "lifted"),
    [
        *(("alone", True), ("alone before", False)),
        *(pytest.param(words, False, marks=pytest.mark.exhaustive) for words in ("", "alone other")),
    ],
)
def test_the_limit_is_lifted_where_all_convolutions_are_the_packages(cpuinfo, words, lifted):
    environ = {k: v for k, v in os.environ.items() if k not in runtime.ISA_VARIABLES} | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", LIFT, str(cpuinfo("avx512f")), *words.split()]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    isa = int(ended.stdout.split()[-1], 16)
    assert (isa & 0x4 == 0x4) is lifted  # the bit of AVX2
    assert ("lifted the limit on oneDNN" in ended.stderr) is lifted


@pytest.mark.parametrize("version", ["1.25.0", "1.26.4"])
def test_numpy_1_is_fine(version):
    runtime.check_numpy(version)


@pytest.mark.parametrize("version", ["2.0.0", "2.3.1rc1", "10.0"])
def test_later_numpy_is_refused_with_the_fix(version):
    with pytest.raises(UserError, match=rf"NumPy {version}: pip install 'numpy==1.26.4'"):
        runtime.check_numpy(version)


def test_the_c_librarys_allocator_is_fine():
    assert Path(runtime.allocator()).name.startswith("libc")
    for library in (None, "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc-2.28.so", runtime.allocator()):
        runtime.check_allocator(library)


OTHER_PYTHON = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")


@pytest.mark.skipif(not OTHER_PYTHON.exists(), reason="the system has no Python of this version beside this one")
def test_the_c_librarys_allocator_is_that_of_a_python_at_fixed_addresses():
    """As Debian's is, whose own malloc is a jump to the library's."""
    program = "from mindcv_reparam import runtime; runtime.check_allocator(runtime.allocator()); print('well')"
    paths = os.pathsep.join([str(Path(__file__).parents[1]), sysconfig.get_path("purelib")])
    environ = os.environ | {"PYTHONPATH": paths}
    assert subprocess.run([OTHER_PYTHON, "-c", program], env=environ, capture_output=True).stdout == b"well\n"


def test_another_allocator_in_front_of_it_is_refused_on_a_cpu(tmp_path):
    """MindSpore's kernels read behind a block, where the C library's malloc never has a zero."""
    source, library = tmp_path / "a.c", tmp_path / "libother.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) { return __libc_malloc(n); }\n"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    command = [sys.executable, "train.py", "--config", "configs/visformer/visformer_tiny_digits_cpu.yaml"]
    child = subprocess.run(
        [*command, "--ckpt_save_dir", str(tmp_path / "run")],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 2
    assert f"memory comes from {library}, not from the C library" in child.stderr
    assert len(child.stderr.splitlines()) == 1


def test_ascend_is_found_by_its_device_files(tmp_path):
    (tmp_path / "davinci_manager").touch()
    assert runtime.detect_device(tmp_path) == "CPU"
    (tmp_path / "davinci0").touch()
    assert runtime.detect_device(tmp_path) == "Ascend"


def test_missing_device_is_a_user_error():
    with pytest.raises(UserError, match=r"Ascend.*--device_target CPU"):
        runtime.prepare("Ascend")


@pytest.mark.parametrize(("target", "device"), [("Ascend", 3), ("CPU", 0)])
def test_every_rank_has_the_device_of_its_number_on_the_host(monkeypatch, target, device):
    rank = {"OMPI_COMM_WORLD_RANK": "11", "OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    monkeypatch.setattr(os, "environ", os.environ | rank)
    monkeypatch.setattr(runtime, "launched", lambda: launched(rank))
    monkeypatch.setattr(runtime, "_set_kernel_threads", lambda threads: None)
    framework = mock.Mock()
    monkeypatch.setattr(runtime, "_import_mindspore", lambda: framework)
    runtime.prepare(target)
    framework.set_device.assert_called_once_with(target, device)


def test_prepare_sets_device_mode_and_seeds():
    assert runtime.prepare("CPU", mode=0, seed=11) == "CPU"
    first = np.random.rand(3), ms.ops.standard_normal((3,)).asnumpy()
    runtime.prepare("CPU", mode=0, seed=11)
    second = np.random.rand(3), ms.ops.standard_normal((3,)).asnumpy()
    runtime.prepare("CPU", mode=0, seed=12)
    third = np.random.rand(3), ms.ops.standard_normal((3,)).asnumpy()
    assert ms.get_context("device_target") == "CPU"
    assert ms.get_context("mode") == ms.GRAPH_MODE
    for a, b, c in zip(first, second, third, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_prepare_sets_level_and_determinism_only_where_asked(monkeypatch):
    contexts, deterministic = [], []
    monkeypatch.setattr(ms, "set_context", lambda **options: contexts.append(options))
    monkeypatch.setattr(ms, "set_deterministic", deterministic.append)
    runtime.prepare("CPU")
    assert [options.get("jit_config") for options in contexts] == [None]
    assert deterministic == []
    runtime.prepare("CPU", jit_level="O1", deterministic=True)
    assert contexts[-1] == {"jit_config": {"jit_level": "O1"}}
    assert deterministic == [True]


@pytest.mark.parametrize("command", ["train", "validate"])
def test_the_commands_ask_for_level_and_determinism(command, monkeypatch):
    """As the command line says; nothing is trained."""

    class Asked(Exception):
        pass

    def prepare(*arguments):
        raise Asked(arguments)

    monkeypatch.setattr(runtime, "prepare", prepare)
    monkeypatch.setattr(runtime, "show_log", lambda: None)
    monkeypatch.setattr(owner, "own", lambda folder: None)
    monkeypatch.setattr(validate, "check_checkpoint", lambda path: None)
    script = {"train": train, "validate": validate}[command]
    parser = Parser(prog=command)
    script.add_arguments(parser)
    words = ["--model", "visformer_tiny", "--dataset", "digits", "--jit_level", "O1", "--deterministic", "True"]
    words += ["--ckpt_path", "some.ckpt"] if command == "validate" else []
    with pytest.raises(Asked) as asked:
        script.run(parser.parse_args(words))
    assert asked.value.args[0] == (None, 0, 42, "O1", True)


@pytest.mark.parametrize(
    ("total", "bound", "ranks", "threads", "told"),
    [(64, 64, 1, 64, False), (64, 64, 8, 8, False), (64, 1, 2, 1, True), (2, 1, 2, 1, False), (2, 2, 4, 1, False)],
)
def test_ranks_share_the_cores(monkeypatch, caplog, total, bound, ranks, threads, told):
    monkeypatch.setattr(os, "cpu_count", lambda: total)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    with caplog.at_level(logging.INFO, "mindcv_reparam"):
        assert runtime.threads_of_a_rank(ranks) == threads
    assert ("--bind-to none" in caplog.text) is told


@pytest.mark.parametrize(
    ("rank", "expected"),
    [("0", "all is well\na file is bad\n"), ("3", "rank 3: a file is bad\n")],
)
def test_log_of_a_rank(monkeypatch, capsys, rank, expected):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    package = logging.getLogger("mindcv_reparam")
    before = package.handlers, package.level, package.propagate
    try:
        runtime.show_log()
        runtime.show_log()  # twice is once
        logging.getLogger("mindcv_reparam.part").info("all is well")
        logging.getLogger("mindcv_reparam.part").warning("a file is bad")
    finally:
        package.handlers, package.level, package.propagate = before
    assert capsys.readouterr().err == expected
