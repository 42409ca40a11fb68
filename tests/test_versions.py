"""Which MindSpore, CANN, driver and devices go together, and what doctor says of recorded hosts."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest

from mindcv_reparam import versions
from mindcv_reparam.commands import doctor

# As npu-smi prints it, with names and versions of published reports; not run on Ascend here.
HEAD = """
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
"""
A2 = (
    HEAD
    + """| 0     910B4               | OK            | 88.2        30                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          26838/ 32768         |
+===========================+===============+====================================================+
| 1     910B4-1             | Alarm         | 87.0        30                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          29356/ 32768         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 310911        | python                   | 23976                   |
"""
)
A3 = (
    HEAD
    + """| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
"""
)


@pytest.mark.parametrize(
    ("mindspore", "cann", "fits"),
    [
        ("2.7.0", "8.2.RC1", True),
        ("2.7.0", "8.3.RC1", False),
        ("2.7.1.post1", "8.3.RC1", True),
        ("2.7.2", "8.5.0", True),
        ("2.7.2", "8.2.RC1", False),
        ("2.8.0", "8.5.0", True),
        ("2.8.0", "9.0.0", False),
        ("2.9.0", "9.0.0", True),
        ("2.10.0", "9.1.0", True),
        ("2.11.0", "9.1.0", False),
    ],
)
def test_mindspore_takes_the_cann_of_its_list(mindspore, cann, fits):
    assert versions.fits(mindspore, cann) == fits


def test_the_list_is_that_of_the_mindspore_here():
    folder = Path(*importlib.util.find_spec("mindspore").submodule_search_locations)
    text = (folder / "run_check" / "_check_version.py").read_text(encoding="utf-8")
    listed = re.search(r"class AscendEnvChecker.*?self\.version = \[(.*?)\]", text, re.DOTALL)[1]
    assert versions.cann_of(version("mindspore")) == tuple(re.findall(r'"([\d.]+)"', listed))


def test_what_npu_smi_shows_is_read():
    assert versions.read_devices(A2) == ("25.2.0", ("910B4", "910B4-1"), ("chip 1: Alarm",))
    assert versions.read_devices(A3) == ("25.2.0", ("Ascend910", "Ascend910"), ())
    assert versions.read_devices("") == (None, (), ())


@pytest.fixture
def host(tmp_path, monkeypatch):
    """doctor's report on a host with a MindSpore, a CANN and what npu-smi prints there."""

    def reported(mindspore: str, cann: str | None, shown: str) -> doctor.Report:
        monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
        if cann:
            (tmp_path / "compiler").mkdir()
            (tmp_path / "compiler" / "version.info").write_text(f"Version={cann}\nversion_dir=latest\n")
            monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
        monkeypatch.setattr(doctor, "_version", {"mindspore": mindspore}.get)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/local/bin/{name}" if shown else None)
        monkeypatch.setattr(doctor, "_printed", lambda command: shown)
        report = doctor.Report()
        doctor._ascend(report)
        return report

    return reported


def test_a_host_whose_parts_fit_has_no_problem(host):
    report = host("2.8.0", "8.2.RC1", A3)
    assert report.problems == []
    assert report.facts["ascend"]["CANN"] == "8.2.RC1"
    assert report.facts["ascend"]["driver"] == "25.2.0"
    assert report.facts["ascend"]["devices"] == "2 x Ascend910"
    assert report.facts["ascend"]["CANN taken"] == "8.2, 8.3, 8.5"


def test_a_cann_that_mindspore_does_not_take_is_a_problem(host):
    [(problem, fix)] = host("2.7.0", "9.0.0", A3).problems
    assert problem == "MindSpore 2.7.0 does not take CANN 9.0.0, by its own list"
    assert fix == "a CANN of 7.7, 7.8, 8.2, or the MindSpore that takes this one: 2.9, 2.10"


def test_devices_without_cann_and_unwell_ones_are_problems(host):
    problems = [problem for problem, _ in host("2.10.0", None, A2).problems]
    assert problems == ["chip 1: Alarm", "there are devices and no CANN"]


def test_a_host_without_devices_has_no_problem(host):
    report = host("2.9.0", None, "")
    assert report.problems == []
    assert report.facts["ascend"]["devices"] == "none"


@pytest.mark.parametrize("mindspore", ["2.7.0", "2.7.2", "2.8.0", "2.9.0", "2.10.0"])
def test_a_mindspore_that_fits_is_never_to_be_replaced(mindspore, monkeypatch):
    """Also where everything else is missing, or broken."""
    monkeypatch.setattr(doctor, "_version", {"mindspore": mindspore}.get)
    monkeypatch.setattr(
        doctor, "_first_line", lambda command: "Open MPI 4.1.2" if "-c" in command else "Open MPI 5.0.1"
    )
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    report = doctor.Report()
    for examine in (doctor._packages, doctor._ascend, doctor._mindspore, doctor._mpi):
        examine(report)
    assert len(report.problems) > 4
    for problem, fix in report.problems:
        assert "requirements.txt" not in fix, problem
        assert "mindspore==" not in fix.replace(f"mindspore=={mindspore}", ""), problem
