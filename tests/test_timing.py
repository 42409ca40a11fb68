"""``python -m mindcv_reparam benchmark``: what is timed, and what is recommended of it."""

import json
import shlex

import numpy as np
import pytest
from test_documents import parse
from test_infer import write_bundle as written

from mindcv_reparam.__main__ import main
from mindcv_reparam.bundle.checksums import write_checksums
from mindcv_reparam.bundle.manifest import read_manifest
from mindcv_reparam.errors import UserError
from mindcv_reparam.run.runners import bundle_program, check_threads
from mindcv_reparam.run.sample import write_sample
from mindcv_reparam.run.timing import Setting, Timing, measure, recommend, timing


def write_bundle(folder, **options):
    written(folder, **options)
    write_sample(folder, read_manifest(folder), bundle_program(folder))
    write_checksums(folder)
    return folder


def test_a_setting_comes_to_percentiles_and_images_per_second():
    seconds = [0.010] * 18 + [0.020, 0.100]
    assert timing(Setting("onnxruntime", 2, 4), seconds) == Timing(
        "onnxruntime", 2, 4, calls=20, p50=10.0, p95=pytest.approx(24.0), images_per_second=pytest.approx(4 * 20 / 0.3)
    )


def of(threads, batch, p50, p95, rate, backend="onnxruntime"):
    return Timing(backend, threads, batch, calls=9, p50=p50, p95=p95, images_per_second=rate)


def test_the_shortest_median_of_single_images_and_the_highest_rate_are_recommended():
    timings = [
        *(of(1, 1, 20, 22, 50), of(2, 1, 12, 15, 83), of(4, 1, 9, 14, 110)),
        *(of(1, 8, 150, 170, 53), of(2, 8, 80, 90, 100), of(4, 8, 50, 60, 160), of(4, 16, 120, 150, 133)),
    ]
    found = recommend(timings)
    assert (found.latency, found.throughput) == (timings[2], timings[5])


def test_of_equal_settings_fewer_threads_and_shorter_waits_are_recommended():
    timings = [of(1, 1, 10.4, 12, 96), of(2, 1, 10, 11, 100), of(2, 8, 80, 90, 101), of(2, 16, 150, 170, 103)]
    found = recommend(timings)
    assert found.latency == timings[0]  # 4 % slower than with two threads
    assert found.throughput == timings[1]  # 3 % fewer images per second than with 16 together, after 11 ms
    apart = [of(1, 1, 10.6, 12, 94), *timings[1:]]
    assert recommend(apart).latency == timings[1]


def test_a_bundle_s_smallest_batch_is_what_latency_is_about():
    timings = [of(2, 4, 40, 44, 100), of(2, 8, 30, 33, 266, "mindspore")]
    assert recommend(timings).latency == timings[0]


def test_settings_take_turns_and_their_first_calls_do_not_count():
    calls = []
    programs = {
        ("onnxruntime", threads): lambda images, threads=threads: calls.append((threads, len(images)))
        for threads in (1, 2)
    }
    inputs = {batch: (np.zeros((batch, 3)),) for batch in (1, 4)}
    timings = measure(programs, inputs, seconds=1e-9)
    assert [(one.backend, one.threads, one.batch, one.calls) for one in timings] == [
        ("onnxruntime", threads, batch, 9) for threads in (1, 2) for batch in (1, 4)
    ]
    settings = [(1, 1), (1, 4), (2, 1), (2, 4)]
    turns = [settings, settings[1:] + settings[:1], settings[2:] + settings[:2]]
    assert calls == [setting for turn in turns for setting in turn for _ in range(4)]


def test_a_table_and_what_to_type_are_printed(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "colours")
    assert main(["benchmark", str(bundle), "--batch_size", "2", "1", "--threads", "1", "--seconds", "0.001"]) == 0
    output, errors = capsys.readouterr()
    assert errors == "settings: 2; 0.001 s or nine calls each\n"
    head, *rows, empty, latency, one, throughput, other = output.splitlines()
    assert head.split() == ["backend", "threads", "batch", "p50", "ms", "p95", "ms", "images/s", "calls"]
    assert [row.split()[:3] for row in rows] == [["onnxruntime", "1", "1"], ["onnxruntime", "1", "2"]]
    assert empty == ""
    assert latency.startswith("for latency: onnxruntime, threads 1, batch 1: p50 ")
    assert throughput.startswith("for throughput: onnxruntime, threads 1, batch ")
    for line in (one, other):
        parse(f"python -m mindcv_reparam {line.strip()}")
    assert shlex.split(one) == [
        *("serve", str(bundle), "--backend", "onnxruntime", "--max_batch_size", "1", "--threads", "1")
    ]


def test_as_json(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "pixels", input_kind="rgb", batch_sizes=(1, 4))
    assert main(["benchmark", str(bundle), "--threads", "1", "2", "--seconds", "0.001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"bundle", "model", "processors", "seconds", "timings", "recommended"}
    assert [(one["threads"], one["batch"]) for one in found["timings"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    for one in found["timings"]:
        assert one["calls"] >= 9
        assert 0 < one["p50"] <= one["p95"]
        assert one["images_per_second"] > 0
    timings = [Timing(**one) for one in found["timings"]]
    assert found["recommended"] == {name: vars(one) for name, one in vars(recommend(timings)).items()}


def test_threads_reach_onnxruntime(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    seen, session = [], onnxruntime.InferenceSession

    def started(path, options, **rest):
        seen.append(options.intra_op_num_threads)
        return session(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", started)
    bundle_program(write_bundle(tmp_path / "colours"), None, 3)
    assert seen[-1] == 3


def test_mindspore_s_threads_are_its_own():
    with pytest.raises(UserError, match=r"^threads are for onnxruntime: mindspore has one per processor"):
        check_threads("mindspore")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch_size", "2"], "batch_size 2: this bundle has 1, 4"),
        (["--threads", "0"], "--threads: must be a whole number from 1 to 1024"),
        (["--seconds", "nan"], "--seconds: must be a number above 0 and up to 3600, got 'nan'"),
        (["--backend", "mindspore"], "has ONNX: mindspore cannot run that"),
    ],
)
def test_what_cannot_be_timed_is_one_line(tmp_path, words, message):
    bundle = write_bundle(tmp_path / "pixels", input_kind="rgb", batch_sizes=(1, 4))
    with pytest.raises(UserError, match=message):
        main(["benchmark", str(bundle), *words])
