"""The lines of docs/hosts.md between two hosts, which are network namespaces: two_hosts.sh makes them.

They need root, iproute2 and openssh-server; what they leave behind is a folder of the test.
"""

import os
import re
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ENVIRONMENT, MODEL, wait_for_end

from mindcv_reparam.checkpoint import read_checkpoint

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
        cores = [str(core) for core in os.sched_getaffinity(0)]
        # What the tests' own MindSpore has in its environment is none of a host's, and b would not have it.
        environ = ENVIRONMENT | {"HOME": os.environ["HOME"], "CORE_A": cores[0], "CORE_B": cores[-1]}
        environ |= {"PATH": f"{ENVIRONMENT['PATH']}:/usr/sbin:/sbin"}
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
        "8118": "9118",  # from 8118 on MindSpore's ranks serve each other, those of an mpirun beside it, too
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


@pytest.mark.exhaustive
def test_the_script_goes_on_with_a_run_that_was_stopped_and_has_lost_a_host_and_validates_it(
    two_hosts, tmp_path, images
):
    loop = here(LOOP, tmp_path).replace("[ $FINAL", "echo ended with $status; [ $FINAL", 1)
    stop = (
        f"( until [ -e {tmp_path}/run/{MODEL}_resume.npz ]; do sleep 0.05; done; pkill -USR1 -x 'mpirun|prterun' ) &\n"
    )
    lose = f"( until grep -q 'epoch 2/3 step 3' {tmp_path}/run/run.log; do sleep 0.05; done; lose_b; start_b ) &\n"
    status, output = two_hosts(f"{stop}( {loop} ); echo stopped with $?\n{lose}{loop}", seconds=200)
    assert status == 0, output
    stopped, output = output.split("stopped with 1\n")  # the script does not go on with a run that was stopped
    assert re.findall(r"ended with (\d+)", stopped) == [str(128 + signal.SIGUSR1)], stopped
    assert "stopped by SIGUSR1 after epoch 2" in stopped, stopped
    endings = re.findall(r"ended with (\d+)", output)  # mpirun's is often 0 where a host is lost, too
    assert len(endings) > 1, output
    assert endings[-1] == "0", output
    assert (stopped + output).count("epoch 1/3 done") == output.count("epoch 3/3 done") == 1, output
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


MSRUN = BLOCKS[1]
WORKER = f"{TESTS}/distributed_worker.py"


def msrun_of(script: str, folder: Path, logs: str) -> str:
    """The page's line with a script, as a word of the shell."""
    launcher = here(MSRUN.partition("train.py")[0].strip(), folder)
    return f"'{launcher.replace(f'{folder}/logs', f'{folder}/{logs}')} {script}'"


def said_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def weights(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in read_checkpoint(path)[0].items()}


@pytest.mark.exhaustive
@pytest.mark.usefixtures("known_tiny", "images")
def test_msrun_loses_a_host_is_stopped_and_goes_on_to_the_weights_of_one_host(two_hosts, tmp_path):
    training = f"train.py {here(MSRUN, tmp_path).partition('train.py')[2].strip()}"
    state, final = f"{tmp_path}/run/{MODEL}_resume.npz", f"{tmp_path}/run/{MODEL}_final.ckpt"
    validation = f"validate.py {OPTIONS} -c {tmp_path}/run/{MODEL}.yaml --ckpt_path {final}"
    alone = [f"-n 1 taskset -c {core} python {training.replace('/run', '/alone')}" for core in ("$CORE_A", "$CORE_B")]
    both = [
        f"mkdir {tmp_path}/{name}; msrun_on_both {tmp_path}/{name} {msrun_of(here(script, tmp_path), tmp_path, name)}\n"
        for name, script in {"lost": training, "stopped": training, "ended": training, "valid": validation}.items()
    ]
    status, output = two_hosts(
        f"( until [ -e {state} ]; do sleep 0.05; done; lose_b\n"
        f"mpirun --bind-to none {' : '.join(alone)} ) &\n"
        f"alone=$!; {both[0]} wait $alone; start_b\n"
        f"( until grep -qs 'epoch 2/3 step 3' {tmp_path}/stopped/worker_0.log; do sleep 0.05; done\n"
        "$ON_B pkill -USR1 -f ^python.train ) &\n"
        f"{both[1]} {both[2]} {both[3]} gone_within_a_minute",
        seconds=400,
    )
    assert status == 0, output
    said = {name: said_in(tmp_path / name) for name in ("lost", "stopped", "ended", "valid")}
    assert said["lost"]["a"].endswith("ended with 1\n"), said
    assert said["stopped"]["a"].endswith("ended with 1\n"), said
    assert said["stopped"]["b"].endswith("ended with 1\n"), said
    assert "stopped by SIGUSR1 after epoch 3, step 1" in said["stopped"]["worker_0.log"], said
    for name in ("ended", "valid"):
        assert said[name]["a"].endswith("ended with 0\n"), said
        assert said[name]["b"].endswith("ended with 0\n"), said
    assert "epoch 3/3 done" in said["ended"]["worker_0.log"], said
    assert "top-1" in said["valid"]["worker_0.log"], said
    assert weights(tmp_path / f"run/{MODEL}_final.ckpt") == weights(tmp_path / f"alone/{MODEL}_final.ckpt")


def test_a_rank_that_dies_on_the_other_host_ends_msrun_on_both(two_hosts, tmp_path):
    line = msrun_of(f"{WORKER} waiting here", tmp_path, "job")
    status, output = two_hosts(
        f"mkdir {tmp_path}/job; msrun_on_both {tmp_path}/job {line} &\n"
        f"for rank in 0 1; do until grep -qs ready {tmp_path}/job/worker_$rank.log; do sleep 0.2; done; done\n"
        "$ON_B pkill -9 -f ^python.*distributed_worker\n"
        "gone_within_a_minute"
    )
    said = said_in(tmp_path / "job")
    assert status == 0, output
    assert said["a"].endswith("ended with 1\n"), said
    assert said["b"].endswith("ended with 1\n"), said
    assert "a rank of the job died" in said["scheduler.log"], said
    assert "Error code: -9" in said["b"], said


@pytest.mark.exhaustive
def test_a_short_loss_of_the_link_changes_nothing_and_one_for_ever_ends_the_job(two_hosts, tmp_path):
    """By both launchers at once, within the times of the page."""
    line = msrun_of(f"{WORKER} stepping here", tmp_path, "job")
    mpirun = here(MPIRUN.replace("-x PATH", "-x PATH -x PYTHONPATH"), Path())
    status, output = two_hosts(
        f"mkdir {tmp_path}/job; cd {tmp_path}/job; msrun_on_both {tmp_path}/job {line} &\n"
        f"{{ {mpirun} python {WORKER} stepping here; echo ended with $?; }} > mpirun 2>&1 &\n"
        "for each in mpirun worker_0.log worker_1.log; do until grep -qs ready $each; do sleep 0.2; done; done\n"
        "ip link set eth0 down; sleep 4; ip link set eth0 up\n"
        "for each in mpirun worker_0.log worker_1.log; do\n"
        "    before=$(grep -c ^at $each); until [ $(grep -c ^at $each) -gt $before ]; do sleep 0.2; done\n"
        "done\n"
        "! grep 'ended with' a b mpirun && ip link set eth0 down && gone_within_a_minute",
        seconds=180,
    )
    said = said_in(tmp_path / "job")
    assert status == 0, (output, said)
    assert "lost communication with a remote daemon" in said["mpirun"], said
    assert said["a"].endswith("ended with 1\n"), said
    assert said["b"].endswith("ended with 1\n"), said
    assert "rank 1 on b: error: msrun's scheduler at 10.77.0.1:9118 does not answer since" in said["worker_1.log"], said
    assert "rank 0 on a is silent since" in said["worker_1.log"], said
    assert "rank 1 on b is silent since" in said["worker_0.log"], said


def test_mistakes_are_told_before_anybody_waits(two_hosts, tmp_path):
    line = msrun_of(f"{WORKER} waiting here", tmp_path, "{}")
    by_name, busy, names = (line.format(name) for name in ("name", "busy", "names"))
    mpirun = here(MPIRUN.replace("-x PATH", "-x PATH -x PYTHONPATH -x MS_SCHED_HOST"), Path())
    status, output = two_hosts(
        f"cd {tmp_path}; mkdir name busy names; echo 127.0.1.1 first >> hosts\n"
        "python -c 'import socket, time; server = socket.create_server((str(), 9118)); time.sleep(600)' & taken=$!\n"
        f"MS_SCHED_HOST=10.77.0.9 {mpirun} python {WORKER} waiting here > foreign 2>&1; echo ended with $? >> foreign\n"
        f"{{ eval {by_name.replace('10.77.0.1', 'first')}; echo ended with $?; }} > name/a 2>&1\n"
        f"{{ eval {busy}; echo ended with $?; }} > busy/a 2>&1; kill $taken\n"
        f"nsenter --target $B --uts hostname a; msrun_on_both {tmp_path}/names {names}\n"
        "gone_within_a_minute"
    )
    assert status == 0, output
    foreign = (tmp_path / "foreign").read_text()
    assert "error: MS_SCHED_HOST=10.77.0.9 is no address of a" in foreign
    assert foreign.endswith("ended with 2\n"), foreign
    for name, file, told in (
        ("name", "worker_0.log", "msrun's --master_addr is 127.0.1.1 on a, where other hosts do not reach it"),
        ("busy", "scheduler.log", "msrun's scheduler cannot serve at 10.77.0.1:9118 (Address already in use"),
        ("busy", "worker_0.log", "msrun's scheduler at 10.77.0.1:9118 has ended: its error is in scheduler.log"),
        ("names", "worker_0.log", "2 ranks are on hosts called a, which say they have 1"),
        ("names", "worker_1.log", "2 ranks are on hosts called a, which say they have 1"),
    ):
        said = said_in(tmp_path / name)
        assert told in said[file], said
        assert said["a"].endswith("ended with 1\n"), said
