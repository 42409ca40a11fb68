"""The lines of docs/hosts.md between two hosts, which are network namespaces: two_hosts.sh makes them.

They need root, iproute2 and openssh-server; what they leave behind is a folder of the test.
"""

import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ENVIRONMENT, MODEL, wait_for_end

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "hosts.md").read_text()
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"^```shell\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
OPTIONS = (
    f"--mode 1 --device_target CPU --model {MODEL} --image_resize 32 --num_parallel_workers 1 --dataset imagenet "
    "--data_dir data --batch_size 4"
)
TRAINING = f"{OPTIONS} --epoch_size 3 --decay_epochs 3 --warmup_epochs 0 --log_interval 3 --val_while_train True"
NAMESPACES = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
PROGRAMS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "unshare": "util-linux"}


def lacking() -> str:
    """What two hosts need and is not here."""
    if os.geteuid():
        return "two hosts need root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    if absent:
        return f"two hosts need {', '.join(absent)}"
    refused = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True).stderr.strip()
    return f"two hosts need namespaces: {refused}" if refused else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacking()), reason=lacking())]


@pytest.fixture
def two_hosts(tmp_path):
    """Runs a script on host a, in the checkout; returns status and output. Nothing of it may be left."""
    token = uuid.uuid4().hex

    def run(script: str, seconds: int = 120) -> tuple[int, str]:
        program = f"cd {tmp_path}\n. {TESTS}/two_hosts.sh\ncd {ROOT}\nset +e\n{script}"
        environ = os.environ | ENVIRONMENT | {"PATH": f"{ENVIRONMENT['PATH']}:/usr/sbin:/sbin"}
        command = ["timeout", "--signal=KILL", str(seconds), *NAMESPACES, "bash", "-c", program, token]
        ended = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return ended.returncode, ended.stdout.decode().replace("\0", "")

    yield run
    assert wait_for_end(token, seconds=10) == []
    shutil.rmtree(tmp_path / "keys", ignore_errors=True)


def here(line: str, folder: Path) -> str:
    """A line of the page for one rank on each of these hosts, the small network and a folder."""
    for theirs, ours in {
        "-n 16": "-n 2",
        "a:8,b:8": "a:1,b:1",
        "10.0.0.": "10.77.0.",
        "--worker_num=16 --local_worker_num=8": "--worker_num=2 --local_worker_num=1",
        "RUN/visformer_tiny": f"RUN/{MODEL}",
        "train.py --config RECIPE.yaml": f"train.py {TRAINING}",
        "validate.py -c": f"validate.py {OPTIONS} -c",
        "-x PATH": "-x PATH -x MINDCV_REPARAM_FAMILIES",
        "RUN": f"{folder}/run",
        "--data_dir data": f"--data_dir {folder}/data",
        "=logs": f"={folder}/logs",
        "sleep 60": "until $ON_B true 2> /dev/null; do sleep 0.1; done",
    }.items():
        line = line.replace(theirs, ours)
    return line


@pytest.fixture
def images(tmp_path):
    """Noise of two classes in tmp_path/data."""
    for split, count in (("train", 12), ("val", 4)):
        for label in ("0", "1"):
            (folder := tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


MPIRUN = BLOCKS[0].partition("python train.py")[0]
LOOP = next(block for block in BLOCKS if "RUN.started" in block).replace("mpirun … ", MPIRUN)


def test_the_script_goes_on_with_a_run_that_has_lost_a_host_and_validates_it(two_hosts, tmp_path, images):
    lose = f"( until [ -e {tmp_path}/run/{MODEL}_resume.npz ]; do sleep 0.05; done; lose_b; start_b ) &\n"
    loop = here(LOOP, tmp_path).replace("[ $FINAL", "echo ended with $status; [ $FINAL", 1)
    status, output = two_hosts(lose + loop)
    assert status == 0, output
    endings = re.findall(r"ended with (\d+)", output)  # mpirun's is often 0 where a host is lost, too
    assert len(endings) > 1, output
    assert endings[-1] == "0", output
    assert output.count("epoch 1/3 done") == output.count("epoch 3/3 done") == 1, output
    assert "top-1" in output.split("ended with 0")[-1], output


def test_a_rank_that_dies_on_the_other_host_ends_mpirun(two_hosts):
    """Within seconds, with its status; -x hands PYTHONPATH on, which this worker needs."""
    ready = 'until [ "$(grep -c ready $SAID)" = 2 ]; do sleep 0.5; done'
    lose = f"SAID=$(mktemp)\n( {ready}; $ON_B pkill -9 -f [d]istributed_worker ) &\n"
    line = here(MPIRUN.replace("-x PATH", "-x PATH -x PYTHONPATH"), Path())
    status, output = two_hosts(
        f"{lose}status=0; {line} python {TESTS}/distributed_worker.py waiting here > $SAID || status=$?\n"
        "cat $SAID; exit $status"
    )
    assert status == 128 + 9, output
    assert output.count("ready") == 2, output
