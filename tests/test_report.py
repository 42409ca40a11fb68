"""``validate.py --report``: what the page shows is what was measured, and no name on it becomes markup."""

import base64
import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from alone import Alone
from here import restored, run_here
from networks import SMALL, randomise
from PIL import Image
from scipy.optimize import minimize_scalar

import validate
from mindcv_reparam import create_model
from mindcv_reparam.checkpoint import CheckpointInfo, save_checkpoint
from mindcv_reparam.config import Config
from mindcv_reparam.data import create_dataset
from mindcv_reparam.data.decoder import UnreadableImage
from mindcv_reparam.data.image_folder import ImageFolder
from mindcv_reparam.data.objects import Objects
from mindcv_reparam.errors import UserError
from mindcv_reparam.report.html import document, element, table
from mindcv_reparam.tasks import TASKS, open_loader
from mindcv_reparam.tasks.about import About, distinct
from mindcv_reparam.tasks.classification import report
from mindcv_reparam.tasks.classification.calibration import binned, fitted_temperature, log_likelihoods, wilson
from mindcv_reparam.tasks.detection.report import matched

TASK = TASKS["classification"]
SIZE = 24
# As folders and files may be called, and as a checkpoint may call its classes.
CLASSES = ("<script>alert(1)<", "&lt;b&gt; \u202egnp", '"><img src=x onerror=alert(1)>')
LABELS = ("</td></table><script>document.title='owned'</script>", "猫 & ねこ", "<!-- ")


@pytest.fixture
def photos(tmp_path):
    """Seven images of three classes, wider than they are high."""
    rng = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "val" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"<i>{number}.png")
    return tmp_path / "val"


def loader_of(photos, rank=0, size=1, **settings):
    config = Config(image_resize=SIZE, batch_size=2, num_parallel_workers=1, num_classes=3, **settings)
    return open_loader(TASK, ImageFolder(photos), config, False, rank, size)


def logits_of(images):
    """As a network would tell them: of every image other ones, which its pixels determine."""
    return 6 * np.stack([images[:, c, ::2, ::3].mean(axis=(1, 2)) for c in range(3)], axis=1).astype(np.float32)


def about(names=LABELS, **more):
    return About("<title>&", (("data", "folder <b>"),), distinct(names), len(names), **more)


def examined(photos, ranks=1, network=logits_of):
    """Examiners of every rank that have seen their images."""
    found = []
    for rank in range(ranks):
        with loader_of(photos, rank, ranks) as loader:
            examiner = TASK.examiner(loader.batches)
            for images, *targets in loader.epoch(0):
                examiner.add((network(images),), tuple(targets))
            found.append(examiner)
    return found


def report_of(photos, **more):
    (examiner,) = examined(photos, **more)
    return examiner.report(Alone(), examiner.result(Alone(), 1.0), about(latency=0.002, latency_of="<u>"))


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text without markup."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


# numbers


def test_wilsons_interval_is_the_published_one():
    """Newcombe 1998, table I: 81 of 263 and 0 of 20, without continuity correction."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_calibration_error_by_hand():
    found = binned(np.array([0.95, 0.97, 0.5, 1.0]), np.array([True, False, True, True]))
    assert found.counts.sum() == 4
    assert found.counts[-1] == 3
    assert found.error == pytest.approx((abs(2 - 2.92) + abs(1 - 0.5)) / 4)
    assert np.isnan(binned(np.zeros(0), np.zeros(0, bool)).error)


def test_the_temperature_is_the_one_that_made_the_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(20_000, 4))
    noise = rng.gumbel(size=logits.shape)
    labels = (logits / 2.5 + noise).argmax(axis=1)  # drawn from softmax(logits / 2.5)
    found = fitted_temperature(lambda value: -log_likelihoods(logits, labels, value).sum())
    assert found == pytest.approx(2.5, rel=0.03)
    direct = minimize_scalar(lambda x: -log_likelihoods(logits, labels, x).sum(), bounds=(1, 5), method="bounded")
    assert found == pytest.approx(direct.x, rel=1e-3)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.log(probabilities[np.arange(20_000), labels])
    np.testing.assert_allclose(log_likelihoods(logits, labels, 1.0), expected, atol=1e-9)


def test_tables_say_what_was_measured_of_every_image(photos):
    files = report_of(photos)
    assert sorted(files) == ["images.csv", "images.json", "report.html"]
    source, rows = ImageFolder(photos), list(csv.DictReader(files["images.csv"].splitlines()))
    with loader_of(photos) as loader:
        batches = list(loader.epoch(0))
    images = np.concatenate([images[weights > 0] for images, _, weights in batches])
    logits = logits_of(images).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [row["file"] for row in rows] == [source.name(index) for index in range(7)]
    assert [int(row["true_index"]) for row in rows] == source.labels.tolist()
    assert [int(row["index_1"]) for row in rows] == shares.argmax(axis=1).tolist()
    assert [float(row["probability_1"]) for row in rows] == pytest.approx(shares.max(axis=1), rel=1e-5)
    true = shares[np.arange(7), source.labels]
    assert [float(row["true_probability"]) for row in rows] == pytest.approx(true, rel=1e-5)
    hits = int((shares.argmax(axis=1) == source.labels).sum())
    assert 0 < hits < 7, "neither all nor nothing, which would prove less"
    assert [row["right"] for row in rows].count("1") == hits
    told = json.loads(files["images.json"])
    assert (told["samples"], told["correct1"]) == (7, hits)
    assert told["top1_interval"] == pytest.approx([100 * end for end in wilson(hits, 7)])
    assert [row["true"]["label"] for row in told["images"]] == [LABELS[index] for index in source.labels]
    assert [row["classes"][0]["index"] for row in told["images"]] == shares.argmax(axis=1).tolist()
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == source.labels
    assert told["calibration"]["error"] == pytest.approx(binned(confidence, right).error, abs=1e-6)
    for index, row in enumerate(told["classes"]):
        named, of_class = shares.argmax(axis=1) == index, source.labels == index
        assert row["images"] == of_class.sum()
        assert row["recall"] == pytest.approx(right[of_class].mean())
        assert row["precision"] == (pytest.approx(right[named].mean()) if named.any() else None)
    page = " ".join(Page(files["report.html"]).texts)
    assert f"{hits}/7, 95 %: {told['top1_interval'][0]:.2f} to {told['top1_interval'][1]:.2f}" in page
    assert "2.00 ms" in page
    assert f" {100 * told['classes'][0]['recall']:.1f}\N{NO-BREAK SPACE}%" in page


class Gathered(Alone):
    """One of several ranks, whose collectives are computed from what all of them put in."""

    def __init__(self, rank, gathered, summed):
        super().__init__()
        self.rank, self.is_main, self.gathered, self.summed = rank, rank == 0, gathered, summed

    def gather(self, words):
        return self.gathered(words)

    def sum(self, values):
        return self.summed(np.asarray(values, np.float64))


def test_two_ranks_find_what_one_does(photos):
    (whole,), parts = examined(photos), examined(photos, ranks=2)
    expected = whole.findings(Alone())
    rows = [np.concatenate(part._rows).reshape(-1).view(np.int32) for part in parts]
    logits = np.concatenate([np.concatenate(part._logits) for part in parts])
    parts[0]._logits = [logits]  # what the sums over the ranks would give
    found = parts[0].findings(Gathered(0, lambda words: np.stack(rows), lambda values: values))
    for one, other in zip(found.told, expected.told):
        np.testing.assert_array_equal(one, other)
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-9)
    assert found.calibration.error == pytest.approx(expected.calibration.error, rel=1e-9)
    other = Gathered(1, lambda words: np.stack(rows), lambda values: values)
    assert parts[1].report(other, None, about()) == {}


def test_images_without_finite_numbers_are_mistakes_that_are_told(photos):
    def network(images):
        logits = logits_of(images)
        logits[0, 1] = np.nan
        return logits

    files = report_of(photos, network=network)
    told, rows = json.loads(files["images.json"]), list(csv.DictReader(files["images.csv"].splitlines()))
    assert [len(row["classes"]) for row in told["images"]] == [0, 3, 0, 3, 0, 3, 0]
    assert [row["index_1"] for row in rows][::2] == [None] * 4
    assert told["loss"] is None
    assert "4 images without finite numbers" in " ".join(Page(files["report.html"]).texts)
    assert json.loads(report_of(photos, network=lambda images: logits_of(images) * np.nan)["images.json"])[
        "calibration"
    ] == {"error": None, "temperature": None, "error_with_temperature": None}


# the page


def test_no_name_becomes_markup(photos):
    text = report_of(photos)["report.html"]
    page = Page(text)
    assert page.open == []
    assert not page.named("script")
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "div", "table", "thead"}
    allowed |= {"tbody", "tr", "th", "td", "figure", "figcaption", "img", "b", "small", "span"}
    allowed |= {"svg", "line", "rect", "text"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    words = "".join(page.texts)
    for name in (*LABELS, "<title>&", "folder <b>", "<i>0.png", "<u>"):
        assert name in words
    assert r"\u202egnp" in words, "what turns the text around it is spelt out"


def test_the_page_asks_for_nothing(photos):
    page = Page(report_of(photos)["report.html"])
    policy = page.named("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.named("img")
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.named("img"))
    assert not [1 for _, attributes in page.tags if "href" in attributes]


def test_pictures_are_what_the_network_saw(photos):
    with loader_of(photos) as loader:
        batches = loader.batches
        images = np.concatenate([images for images, *_ in loader.epoch(0)])
    for index in (0, 3):
        data = report._seen(index, batches).get("src").partition(",")[2]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert pixels.shape == (SIZE, SIZE, 3)
        config = Config()
        normal = (pixels - np.array(config.mean)) / np.array(config.std)
        np.testing.assert_allclose(normal.transpose(2, 0, 1), images[index], atol=1e-5)


def test_mistakes_come_by_confidence_and_hits_by_doubt(photos):
    text = report_of(photos)["report.html"]
    told = json.loads(report_of(photos)["images.json"])["images"]
    mistakes, _, rest = text.partition("The most confident mistakes")[2].partition("The least confident hits")
    hits = rest.partition("<h2>")[0]
    for part, right, sign in ((mistakes, False, -1), (hits, True, 1)):
        rows = [row for row in told if row["right"] == right]
        rows.sort(key=lambda row: sign * row["classes"][0]["probability"])
        expected = [Path(row["file"]).name for row in rows]
        assert [f"<i>{number}.png" for number in re.findall(r"&lt;i&gt;(\d)\.png</small>", part)] == expected


def test_many_classes_have_their_most_confused_pairs(photos, monkeypatch):
    few = Page(report_of(photos)["report.html"])
    assert len([one for one in few.named("table") if one.get("class") == "heat"]) == 1
    monkeypatch.setattr(report, "SQUARE", 2)
    many = Page(report_of(photos)["report.html"])
    assert not [one for one in many.named("table") if one.get("class") == "heat"]
    assert "of the true class" in many.texts


def test_a_thousand_classes_make_a_page(photos):
    def network(images):
        logits = np.zeros((len(images), 1000), np.float32)
        logits[:, :3] = logits_of(images)
        return logits

    (examiner,) = examined(photos, network=network)
    files = examiner.report(Alone(), examiner.result(Alone(), 1.0), about(["same"] * 1000))
    assert len(files["report.html"]) < 500_000
    assert "same (999)" in files["report.html"]


def test_an_image_that_is_gone_is_told(photos, monkeypatch):
    (examiner,) = examined(photos)

    def lost(self, index):
        raise UnreadableImage("<gone>")

    monkeypatch.setattr(ImageFolder, "pixels", lost)
    files = examiner.report(Alone(), examiner.result(Alone(), 1.0), about())
    assert "It cannot be read any more: &lt;gone&gt;" in files["report.html"]


def test_elements_escape_texts_attributes_and_what_cannot_be_written():
    text = document("a<b", "", element("p", "1 <\n2\u3000& 3", element("b", "x"), "</p>", title='"<>', data_x="\udce9"))
    assert '<p title="&quot;<&gt;" data-x="\\udce9">1 &lt; 2\u3000&amp; 3<b>x</b>&lt;/p&gt;</p>' in text
    text.encode()
    assert Page(document("", "", table(("<a>",), (("<b>",),)))).texts.count("<b>") == 1


# of detectors


@pytest.fixture(scope="module")
def scenes():
    """Eight images of digits, and the files of a detector that misses one, finds one twice and another wrongly."""
    config = Config(dataset="scenes", image_resize=128, batch_size=4, num_samples=8, num_parallel_workers=1)
    source, task = create_dataset(config, train=False), TASKS["detection"]
    with open_loader(task, source, config, False) as loader:
        examiner = task.examiner(loader.batches)
        for _, indices, sizes, weights in loader.epoch(0):
            logits = np.full((4, 30, 10), -9.0, np.float32)
            boxes = np.full((4, 30, 4), 0.5, np.float32)
            for row, (index, size) in enumerate(zip(indices.tolist(), sizes)):
                objects = source.target(index)
                count = len(objects.labels)
                corners, sides = objects.boxes[:, :2], objects.boxes[:, 2:] - objects.boxes[:, :2]
                boxes[row, :count] = np.concatenate([corners + sides / 2, sides], axis=1) / np.tile(size, 2)
                logits[row, np.arange(count), objects.labels] = 4.0
                if row == 0:
                    logits[row, 0] = -9.0  # missed
                    boxes[row, count] = boxes[row, 1]
                    logits[row, count, objects.labels[1]] = 2.0  # found again
                    logits[row, 2] = np.roll(logits[row, 2], 1)  # taken for another
            examiner.add((logits, boxes), (indices, sizes, weights))
    evaluation = examiner.result(Alone(), 1.0)
    return source, evaluation, examiner.report(Alone(), evaluation, about([f"<{digit}>" for digit in range(10)]))


def test_what_a_detector_missed_is_counted_by_image_and_class(scenes):
    source, evaluation, files = scenes
    rows = list(csv.DictReader(files["images.csv"].splitlines()))
    assert len(rows) == 8
    assert [(row["missed"], row["wrong"]) for row in rows] == [("2", "2"), *3 * [("0", "0")]] * 2
    assert all(int(row["objects"]) == int(row["found"]) + int(row["missed"]) for row in rows)
    told = json.loads(files["images.json"])
    assert told["AP"] == pytest.approx(evaluation.numbers["AP"])
    assert [row["file"] for row in told["images"]] == [row["file"] for row in rows]
    page = Page(files["report.html"])
    text = "".join(page.texts)
    assert page.open == []
    assert len(page.named("img")) == 2, "of images without mistakes there is nothing to see"
    assert text.count("2 missed, 2 wrong, ") == 2
    assert f"of {sum(int(row['objects']) for row in rows)}, and 4 wrong ones, at scores from 0.5 on" in text
    seen = np.unique(evaluation.found[:, 0]).astype(int)
    labels = np.concatenate([source.target(index).labels for index in seen])
    assert f"<3>{(labels == 3).sum()}{evaluation.of_classes['3']:.4f}" in text


def test_objects_are_found_by_the_best_detection_that_covers_them():
    objects = Objects(np.array([[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]], np.float32), np.array([1, 1, 2]))
    rows = np.array(
        [
            [1, 0.6, 0, 0, 10, 8],  # the second object, since a better detection takes the first
            [1, 0.9, 0, 0, 10, 9.5],
            [1, 0.55, 0, 0, 10, 9],  # one too many
            [1, 0.49, 0, 0, 10, 10],  # does not count
            [1, 0.8, 50, 50, 60, 60],  # of another class
            [2, 0.7, 50, 50, 60, 55],  # half of it
        ]
    )
    found = matched(0, objects, rows)
    assert found.found[:, 1].tolist() == [0.9, 0.8, 0.7, 0.6, 0.55]
    assert found.right.tolist() == [True, False, True, True, False]
    assert (found.missed, found.wrong) == (0, 2)
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert matched(0, empty, rows).wrong == 5
    assert matched(0, objects, rows[:0]).missed == 3


# as users run it


def test_validate_writes_the_report(photos, tmp_path, capsys):
    name, small = SMALL["poolformer"]
    hparams = {**small, "num_classes": 3, "img_size": 32, "in_channels": 3}
    info = CheckpointInfo(name, hparams, list(CLASSES), {"image_resize": 32}, labels=list(LABELS))
    save_checkpoint(tmp_path / "net.ckpt", randomise(create_model(name, **hparams)), info)
    folder = tmp_path / "report"
    command = ("--ckpt_path", tmp_path / "net.ckpt", "--data_dir", tmp_path, "--mode", 1, "--batch_size", 4)
    with restored():
        run_here(validate, *command, "--report", folder)
        assert sorted(path.name for path in folder.iterdir()) == ["images.csv", "images.json", "report.html"]
        told = json.loads((folder / "images.json").read_text(encoding="utf-8"))
        assert f"({told['correct1']}/7)" in capsys.readouterr().out
        assert {"data", "model", "weights", "image size", "date", "versions"} <= told["about"].keys()
        assert [row["true"]["label"] for row in told["images"]] == [LABELS[index] for index in (2, 2, 1, 1, 0, 0, 0)]
        text = " ".join(Page((folder / "report.html").read_text(encoding="utf-8")).texts)
        assert re.search(r"per image\s+\d+\.\d\d ms\s+the network alone, in batches of 4, CPU", text)
        run_here(validate, *command, "--report", folder)  # which replaces it
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/thesis.txt").touch()
        with pytest.raises(UserError, match="mine holds other things, which would be lost"):
            run_here(validate, *command, "--data_dir", "none", "--report", tmp_path / "mine")  # before the data is read


# in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_the_page_and_runs_nothing(photos, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report_of(photos)["report.html"], encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=420,900"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    shown = Page(done.stdout)
    assert not shown.named("script")
    assert "".join(shown.texts).count(LABELS[0]) >= 2
    assert "<title>&lt;title&gt;&amp;</title>" in done.stdout, "no script has changed it"
    assert "CONSOLE" not in done.stderr, done.stderr
