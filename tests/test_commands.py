"""``python -m mindcv_reparam``: dispatch, help and doctor, as users run them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from here import restored, run_here

import export
import train
import validate
from mindcv_reparam import __version__, commands, create_model
from mindcv_reparam.__main__ import main
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.commands import doctor
from mindcv_reparam.errors import UserError

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = os.environ | {"PATH": path} | variables
    command = [sys.executable, "-m", "mindcv_reparam", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True)


def test_help_lists_every_command_with_its_summary(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "doctor" in commands.summaries()
    for name, summary in commands.summaries().items():
        assert summary.endswith(".")
        assert f"{name:<16}{summary}" in shown


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mindcv_reparam {__version__}\n"


def test_every_command_has_the_same_interface():
    for name in commands.summaries():
        module = importlib.import_module(f"mindcv_reparam.commands.{name}")
        assert callable(module.add_arguments), name
        assert callable(module.run), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["docter"], "unknown command docter; the nearest is doctor"),
        (["doctor", "--jsn"], "unknown flag --jsn; the nearest is --json"),
        (["doctor", "now"], "unexpected argument 'now'"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(arguments, words):
    ended = run(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: {words}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("script", [train, validate, export], ids=lambda script: script.__name__)
def test_a_script_of_a_checkout_is_the_command_of_its_name(monkeypatch, capsys, script):
    name, shown = script.__name__, []
    for run_, words in ((script.main, []), (main, [name])):
        monkeypatch.setattr(sys, "argv", ["program", *words, "--help"])
        with pytest.raises(SystemExit) as ended:
            run_()
        assert not ended.value.code
        shown.append(capsys.readouterr().out.split(" [-c FILE]"))
    assert [usage for usage, _ in shown] == [f"usage: {name}.py", f"usage: python -m mindcv_reparam {name}"]
    assert shown[0][1] == shown[1][1]
    assert commands.summaries()[name] in shown[0][1]
    monkeypatch.setattr(sys, "argv", ["program", name, "--seed", "-1"])
    with pytest.raises(UserError, match="--seed must be at least 0, got -1"):
        main()


def test_help_does_not_import_mindspore():
    names = list(commands.summaries())
    code = f"""
import sys
from mindcv_reparam.__main__ import main
for name in {names}:
    try:
        main([name, "--help"])
    except SystemExit as ended:
        assert not ended.code
    assert "mindspore" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_doctor_finds_a_working_installation():
    ended = run("doctor", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for words in ("mindspore             2.10.0", "a convolution is right", "oneDNN limit", "mpirun (Open MPI)"):
        assert words in ended.stdout
    assert ended.stdout.endswith("no problems found\n")


@pytest.mark.slow
def test_doctor_as_json_reports_a_problem_with_its_fix():
    variables = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    ended = run("doctor", "--json", PYTHONPATH="", MS_ROLE="MS_WORKER", **variables)  # a worker that nobody started
    report = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert report["facts"]["mindspore"] == {"self check": "failed"}
    [[problem, fix]] = report["problems"]
    assert problem.startswith("MindSpore's self check fails: ")
    assert "msrun" in problem
    assert "pip install" in fix


def test_doctor_names_another_allocator_and_does_not_advise_to_install_mindspore_again(monkeypatch):
    monkeypatch.setattr(doctor.runtime, "allocator", lambda: "/usr/lib/libjemalloc.so.2")
    report = report_of(doctor._mindspore, monkeypatch)
    [(problem, fix)] = report.problems
    assert problem.startswith("memory comes from /usr/lib/libjemalloc.so.2")
    assert fix == "unset LD_PRELOAD"
    assert report.facts["mindspore"] == {"self check": "not run"}


def report_of(examine, monkeypatch, **variables: str) -> doctor.Report:
    for name in doctor.runtime.ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    report = doctor.Report()
    examine(report)
    return report


@pytest.mark.parametrize(
    ("flags", "variables", "fact", "problem"),
    [
        ({"avx2"}, {}, "not needed", None),
        ({"avx512f"}, {}, "set by this package", None),
        ({"avx512f"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "set by you", None),
        ({"avx512f"}, {"DNNL_MAX_CPU_ISA": "ALL"}, "set by you", "DNNL_MAX_CPU_ISA=ALL lets oneDNN use AVX-512"),
    ],
)
def test_doctor_judges_onednns_limit(monkeypatch, flags, variables, fact, problem):
    monkeypatch.setattr(doctor.runtime, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    report = report_of(doctor._convolution_path, monkeypatch, **variables)
    assert fact in report.facts["convolutions on CPU"]["oneDNN limit"]
    assert [found[: len(problem)] for found, _ in report.problems] == [problem] if problem else not report.problems


@pytest.mark.parametrize(
    ("package", "version", "problem", "fix"),
    [
        ("numpy", "2.1.0", "MindSpore does not work with NumPy 2.1.0", "numpy==1.26.4"),
        ("mindspore", "2.6.0", "MindSpore 2.6.0 is none of 2.7 to 2.10", "docs/versions.md"),
        ("mindspore", None, "mindspore is not installed", "requirements.txt"),
        ("mpi4py", None, "mpi4py is not installed", "pip install mpi4py==4.1.2"),
    ],
)
def test_doctor_judges_versions(monkeypatch, package, version, problem, fix):
    installed = dict.fromkeys(doctor.PACKAGES, "1.0") | {"mindspore": "2.10.0", "numpy": "1.26.4", package: version}
    monkeypatch.setattr(doctor, "_version", installed.get)
    report = report_of(doctor._packages, monkeypatch)
    [(found, advice)] = report.problems
    assert problem in found
    assert fix in advice
    assert f"problem: {found} → fix: {advice}" in report.text()


def test_doctor_judges_mpi(monkeypatch):
    answers = {"--version": "mpirun (Open MPI) 5.0.11", "-c": "Open MPI v4.1.2, package"}
    monkeypatch.setattr(doctor, "_first_line", lambda command: answers[command[1]])
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: "/opt/bin/mpirun" if path else None)
    monkeypatch.delenv("OMPI_ALLOW_RUN_AS_ROOT", raising=False)
    problems = " ".join(problem for problem, _ in report_of(doctor._mpi, monkeypatch).problems)
    assert "/opt/bin/mpirun is not on PATH" in problems
    assert "mpi4py's library is not mpirun's: Open MPI v4.1.2" in problems
    assert "refuses to run as root" in problems
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    assert "there is no mpirun" in report_of(doctor._mpi, monkeypatch).problems[0][0]


def test_unknown_command_is_a_user_error():
    with pytest.raises(UserError, match="--help"):
        main(["serve_me"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data_dir", "/nowhere"), "data_dir /nowhere is no folder"),
        (("--dataset", "digits"), "dataset digits is not for detection, which is what rtdetr_riformer_xs is for"),
    ],
)
def test_a_checkpoint_alone_tells_what_data_it_is_measured_on(tmp_path, given, message):
    """A detector's is COCO's, where nothing else is said."""
    net = create_model("rtdetr_riformer_xs", num_classes=3)
    hparams = {key: value for key, value in net.hparams.items() if value is not None}
    save_checkpoint(tmp_path / "net.ckpt", net, CheckpointInfo("rtdetr_riformer_xs", hparams))
    with restored(), pytest.raises(UserError, match=message):
        run_here(validate, "--ckpt_path", tmp_path / "net.ckpt", *given)
