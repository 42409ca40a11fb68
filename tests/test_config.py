"""The configuration: MindCV's recipes read verbatim, round trip, flags over YAML, and errors that help."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import yaml
from here import parse
from mindcv_recipes import VARIANTS, recipe

from mindcv_reparam.config import INACTIVE, SETTINGS, Config, load_yaml, save_yaml
from mindcv_reparam.errors import UserError

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path):
    """Write a YAML file and return its path."""

    def write(text: str):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def train(*flags: str) -> Config:
    return parse(["--model", "visformer_tiny", *flags], "train")


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("script", ["train", "validate", "export"])
def test_mindcv_recipe_is_read_verbatim_by_every_script(write, model, script):
    flags = [] if script == "train" else ["--ckpt_path", "model.ckpt"]
    config = parse(["-c", str(write(recipe(model))), *flags], script)
    expected = {k: v for k, v in yaml.safe_load(recipe(model)).items() if k not in (*INACTIVE, "ckpt_path")}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.given == {*expected, "ckpt_path"}


@pytest.mark.parametrize("model", VARIANTS)
def test_own_recipe_asks_for_what_mindcvs_does(write, model):
    own = load_yaml(REPOSITORY / f"configs/visformer/{model}_ascend.yaml")
    spelled_out = dict(gelu=None, lr_scale="none", lr_base_batch=None)
    assert dataclasses.replace(own, **spelled_out) == load_yaml(write(recipe(model)))
    assert own.lr_base_batch == 8 * own.batch_size
    assert own.gelu == "tanh"  # said explicitly: it is MindCV's, and this project's networks know both


def test_every_shipped_configuration_is_valid():
    paths = sorted(REPOSITORY.glob("configs/*/*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        assert parse(["-c", str(path)], "train").model in path.name


def test_defaults_are_mindcvs():
    config = Config()
    assert (config.batch_size, config.epoch_size, config.opt, config.scheduler) == (128, 90, "adam", "cosine_decay")
    assert (config.scale, config.ratio, config.crop_pct) == ((0.08, 1.0), (0.75, 1.333), 0.875)
    assert (config.lr, config.min_lr, config.warmup_epochs, config.decay_epochs) == (0.001, 1e-6, 3, 100)
    assert (config.seed, config.keep_checkpoint_max, config.ckpt_save_policy) == (42, 10, "latest_k")
    assert config.mean == pytest.approx((123.675, 116.28, 103.53))


def test_saved_configuration_reads_back_equal(tmp_path):
    config = train(
        *("--scale", "0.3,1", "--image_resize", "64", "96", "--eps", "1e-8", "--lr", "0.1", "--min_lr", "1e-30"),
        *("--ckpt_save_policy", "None", "--multi_step_decay_milestones", "3", "7", "--data_dir", "/größe: #1 'x'"),
        *("--distribute", "false", "--re_value", "0.5,-1,2", "--drop_path_rate", "0.30000000000000004", "--ema"),
    )
    path = tmp_path / "new" / "resolved.yaml"
    save_yaml(config, path)
    assert load_yaml(path) == config != Config()
    assert [file.name for file in path.parent.iterdir()] == ["resolved.yaml"]
    assert yaml.safe_load(path.read_text())["eps"] == 1e-8  # other YAML readers agree on the numbers


def test_defaults_are_written_so_that_they_are_read_and_a_flag_takes_a_list_back(tmp_path, write):
    save_yaml(Config(), tmp_path / "defaults.yaml")
    assert load_yaml(tmp_path / "defaults.yaml") == Config()
    assert train("--multi_scale", "[]").multi_scale == ()
    with pytest.raises(UserError, match="mean must be numbers with commas between"):
        load_yaml(write("mean: []"))


def test_flags_override_yaml_and_yaml_overrides_defaults(write):
    path = write("model: visformer_tiny\nlr: 0.3\nbatch_size: 7\n")
    config = parse(["--batch_size", "9", "--config", str(path)], "train")
    assert (config.lr, config.batch_size, config.epoch_size) == (0.3, 9, 90)
    assert config.given == {"model", "lr", "batch_size"}


def test_checkpoint_fills_in_only_what_was_not_given():
    config = train("--image_resize", "64").with_defaults(image_resize=256, crop_pct=0.9)
    assert (config.image_resize, config.crop_pct) == (64, 0.9)


def test_checkpoint_fills_in_none_of_a_saved_configuration(tmp_path):
    save_yaml(train("--crop_pct", "1"), tmp_path / "resolved.yaml")
    config = load_yaml(tmp_path / "resolved.yaml").with_defaults(num_classes=10, crop_pct=0.9)
    assert (config.num_classes, config.crop_pct) == (10, 1.0)


@pytest.mark.parametrize(
    ("word", "value"),
    [("False", False), ("false", False), ("no", False), ("0", False), ("True", True), ("yes", True), ("1", True)],
)
def test_boolean_words(write, word, value):
    assert train("--distribute", word).distribute is value
    assert train("--ema", word).ema is value
    assert load_yaml(write(f"shuffle: {word}")).shuffle is value


def test_boolean_flag_alone_is_true_and_does_not_eat_the_next_flag():
    config = train("--ema", "--lr", "0.5")
    assert config.ema is True
    assert config.lr == 0.5


@pytest.mark.parametrize("words", [["0.2,0.9"], ["[0.2, 0.9]"], ["[0.2,", "0.9]"], ["(0.2,0.9)"], ["0.2", "0.9"]])
def test_lists_on_the_command_line(words):
    assert train("--scale", *words).scale == (0.2, 0.9)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr: 1e-3", "lr", 0.001),  # a string to YAML 1.1
        ("loss_scale: 1024", "loss_scale", 1024.0),
        ("image_resize: 32", "image_resize", 32),
        ("image_resize: [32, 48]", "image_resize", (32, 48)),
        ("ckpt_save_policy: None", "ckpt_save_policy", None),
        ("ckpt_save_policy:", "ckpt_save_policy", None),
        ("data_dir: 0123", "data_dir", "0123"),  # an octal number to YAML 1.1
        ("multi_step_decay_milestones: [4, 8]", "multi_step_decay_milestones", (4, 8)),
        ("re_value: random", "re_mode", "pixel"),
        ("export_batch_size: dynamic", "export_batch_size", "dynamic"),
    ],
)
def test_yaml_values(write, text, name, value):
    found = getattr(load_yaml(write(text)), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("batch_size: 8\nbatchsize: 8", 2, ["unknown key batchsize", "nearest is batch_size"]),
        ("\n\nlr: fast", 3, ["lr must be a number", "'fast'"]),
        ("batch_size: 12.5", 1, ["batch_size must be a whole number", "'12.5'"]),
        ("batch_size: true", 1, ["batch_size must be a whole number"]),
        ("batch_size: [8]", 1, ["batch_size must be a whole number"]),
        ("batch_size:", 1, ["batch_size must be a whole number", "got nothing"]),
        ("lr: .nan", 1, ["lr must be a number"]),
        ("lr: {a: 1}", 1, ["lr must be a single value or a list", "mapping"]),
        ("mode: 2", 1, ["mode must be one of 0, 1"]),
        ("opt: adamx", 1, ["opt must be one of sgd, momentum, adam, adamw, lamb", "nearest is adam"]),
        ("amp_level: o3", 1, ["nearest is O3"]),
        ("device_target: GPU", 1, ["Ascend, CPU"]),
        ("shuffle: maybe", 1, ["shuffle must be True or False"]),
        ("crop_pct: 1.2", 1, ["crop_pct must be above 0 and at most 1, got 1.2"]),
        ("hflip: -0.1", 1, ["hflip must be at least 0 and at most 1"]),
        ("label_smoothing: 1", 1, ["at least 0 and below 1"]),
        ("image_resize: [32, 32, 3]", 1, ["a whole number or 2 whole numbers"]),
        ("image_resize: [32, 0]", 1, ["image_resize must be at least 1, got 0"]),
        ("lr: 0.1\nepoch_size: 3\nlr: 0.2", 3, ["lr was set before, in line 1"]),
        ("pretrained: True", 1, ["pretrained can only be False", "ckpt_path"]),
        ("num_cycles: 2", 1, ["num_cycles can only be 1"]),
        ("- lr", 1, ["key: value"]),
        ("lr: [1", 1, ["not valid YAML"]),
        ("lr: 1\n\tx: 2", 2, ["not valid YAML"]),
        ("lr: 1\nx: " + "[" * 5000, 2, ["nested too deeply", "key: value"]),
        ("x:\n" + "".join(" " * i + "y:\n" for i in range(1, 40)), 9, ["nested too deeply"]),
        ("- " * 5000 + "x", 1, ["nested too deeply"]),
        ("a: &a [1, 2]\nb: &b [*a, *a]\nlr: [*b, *b]", 1, ["unknown key a"]),
        ("lr: &a [*a]", 1, ["must be a single value or a list"]),
        ("lr: 1\n? [lr, opt]\n: 3", 2, ["a key must be a word"]),
        ("lr: 1\n---\nopt: sgd", 2, ["not valid YAML"]),
        ("<<: {lr: 1}", 1, ["<< must be a single value or a list"]),
        ("just words", 1, ["key: value"]),
        ("42", 1, ["key: value"]),
        ("lr: 1\nmodel: a\x07b", 2, ["not valid YAML", "0x7"]),
        ("%YAML 9.9\n---\nlr: 1", 1, ["not valid YAML"]),
        ('data_dir: "a\\0b"', 1, ["data_dir must be text", r"'a\x00b'"]),
        ("learning_rate: 1", 1, ["unknown key learning_rate; here it is lr"]),
        ("epochs: 1", 1, ["unknown key epochs; here it is epoch_size"]),
        ("patience: 1", 1, ["unknown key patience; python -m mindcv_reparam train --help lists the keys"]),
        ("device_target: npu", 1, ["here it is Ascend"]),
        ("scheduler: cosine", 1, ["here it is cosine_decay"]),
        ("lr: 1e400", 1, ["lr must be a number, got '1e400'"]),
        ("lr: -.inf", 1, ["lr must be a number"]),
        ("lr: True", 1, ["lr must be a number, got 'True'"]),
        ("lr: [0.1]", 1, ["lr must be a number"]),
        ("lr: 0x10", 1, ["lr must be a number"]),
        ("epoch_size: 1e2", 1, ["epoch_size must be a whole number, got '1e2'"]),
        ("epoch_size: " + "9" * 40, 1, ["epoch_size must be at most 2147483647 in size, got 9"]),
        ("epoch_size: -" + "9" * 400, 1, ["epoch_size must be at most 2147483647 in size, got -9", "…"]),
        ("epoch_size: " + "9" * 5000, 1, ["epoch_size must be a whole number, got '9", "…"]),
        ("multi_step_decay_milestones: [1, " + "9" * 40 + "]", 1, ["at most 2147483647 in size"]),
        ("multi_step_decay_milestones: []", 1, ["must be whole numbers"]),
        ("mean: [1, nan, 3]", 1, ["mean must be numbers"]),
        ("x" * 100_000 + ": 1", 1, ["not valid YAML"]),
        ("? " + "x" * 100_000 + "\n: 1", 1, ["unknown key x", "…"]),
        ("model: " + "x" * 100_000, 1, ["no model is called 'x", "…"]),
    ],
)
def test_yaml_errors_name_file_line_and_what_is_valid(write, text, line, words):
    path = write(text)
    message = error_of(load_yaml, path)
    assert message.startswith(f"{path}:{line}: ")
    assert len(message) < 600
    for word in words:
        assert word in message


def test_yaml_files_that_cannot_be_read(tmp_path):
    start = f"cannot read the configuration {tmp_path}"
    lost = error_of(parse, ["-c", str(tmp_path / "nowhere.yaml")], "train")
    assert lost == f"{start}/nowhere.yaml: No such file or directory"
    assert error_of(load_yaml, tmp_path) == f"{start}: it is a folder, not a file"
    binary = tmp_path / "model.ckpt"
    binary.write_bytes(b"\xff\x00\x80")
    assert "not a text file" in error_of(load_yaml, binary)


def test_yaml_files_of_another_kind(tmp_path):
    path = tmp_path / "c.yaml"
    for content, words in (
        (b"\x89PNG\r\n\x1a\n\xff", "is no configuration: it is an image"),
        (b"\n\x80\x01\n\x05weigh\xff", "is no configuration: it is a checkpoint of MindSpore"),
        ("lr: 1".encode("utf-16"), "not a text file in UTF-8"),
        (b"x" * (1 << 20) + b": 1", "is larger than the 1,048,576 bytes"),
        (b'data_dir: "\\U99999999"', "a number in an escape or a directive is out of range"),
        (b"%YAML 1." + b"9" * 5000 + b"\n---\nlr: 1", "not valid YAML"),
    ):
        path.write_bytes(content)
        assert words in error_of(load_yaml, path)
    path.unlink()
    os.mkfifo(path)
    assert "a pipe, socket or device" in error_of(load_yaml, path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes("lr: 0.5".encode("utf-8-sig"))
    assert load_yaml(tmp_path / "c.yaml").lr == 0.5


def test_any_path_on_the_disk_survives_the_resolved_configuration(tmp_path):
    config = train("--data_dir", "/data/\udcff: #'\"")
    save_yaml(config, tmp_path / "resolved.yaml")
    assert load_yaml(tmp_path / "resolved.yaml") == config


def test_file_of_comments_only_sets_nothing(write):
    assert load_yaml(write("# nothing here\n")).given == frozenset()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batchsize", "8"], ["unknown flag --batchsize", "nearest is --batch_size"]),
        (["--batch", "8"], ["unknown flag --batch;"]),  # no abbreviations
        (["--batchsize=8"], ["unknown flag --batchsize;"]),
        (["--lr"], ["--lr", "expected one argument", "--help"]),
        (["--lr", "fast"], ["--lr must be a number, got 'fast'"]),
        (["--opt", "adamx"], ["--opt must be one of", "nearest is adam"]),
        (["8"], ["unexpected argument '8'"]),
        (["--learning_rate", "1"], ["unknown flag --learning_rate; here it is --lr"]),
        (["--gpu", "0"], ["unknown flag --gpu; here it is --device_target"]),
        (["--data-path", "x"], ["unknown flag --data-path; here it is --data_dir"]),
        (["--pretrained_weights", "x"], ["unknown flag --pretrained_weights; here it is --ckpt_path"]),
        (["--output_dir", "x"], ["unknown flag --output_dir; here it is --ckpt_save_dir"]),
        (["--patience", "3"], ["unknown flag --patience; see --help"]),
        (["--model", "resnet50"], ["no model is called 'resnet50'; python -m mindcv_reparam list shows the names"]),
        (["--model", "fastvit_t8.apple_in1k"], ["the nearest is 'fastvit_t8'"]),
        (["--model", "riformer-s12_32xb128_in1k"], ["the nearest is 'riformer_s12'"]),
        (["--lr", "nan"], ["--lr must be a number, got 'nan'"]),
        (["--num_classes", "1000000"], ["--num_classes must be at least 1 and at most 100000, got 1000000"]),
        (["--lr", "1,2"], ["--lr must be a number"]),
        (["--batch_size", "-" + "9" * 400], ["--batch_size must be at most 2147483647 in size"]),
        (["--dataset_download"], ["--dataset_download can only be False", "data_dir"]),
        (["--output", "here"], ["train.py has no flag --output"]),
    ],
)
def test_flag_errors(flags, words):
    message = error_of(train, *flags)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", INACTIVE)
def test_keys_of_mindcv_that_are_not_served_may_be_off(write, name):
    hint, off, _ = INACTIVE[name]
    assert load_yaml(write(f"{name}: {off}")) == Config()
    assert train(f"--{name}", str(off)) == train()
    message = error_of(load_yaml, write(f"{name}: {'[nn.Dense]' if hint == str | None else 1 + bool(off)}"))
    assert f"{name} " in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scale", "0.9,0.2"], "scale must be a range"),
        (["--mean", "1,2,3", "--std", "1,2"], "mean has 3 channels and std 2"),
        (["--lr", "0.1", "--min_lr", "0.2"], "min_lr 0.2 is above lr 0.1"),
        (["--ckpt_save_policy", "top_k"], "needs val_while_train True"),
        (["--resume_opt"], "resume auto goes on with the run in ckpt_save_dir"),
        (["--lr_scale", "linear"], "lr_scale linear needs lr_base_batch"),
    ],
)
def test_settings_that_contradict_each_other(flags, words):
    assert words in error_of(train, *flags)


def test_short_training_may_end_within_its_warm_up():
    assert train("--epoch_size", "1", "--warmup_epochs", "5").epoch_size == 1


def test_what_a_script_cannot_do_without():
    assert "--model" in error_of(parse, [], "train")
    assert "--ckpt_path" in error_of(parse, [], "validate")
    assert "--ckpt_path" in error_of(parse, [], "export")


def test_export_has_a_batch_size_of_its_own(write):
    path = write("batch_size: 256")
    config = parse(["-c", str(path), "--ckpt_path", "a.ckpt"], "export")
    assert (config.batch_size, config.export_batch_size) == (256, (1,))
    config = parse(["-c", str(path), "--ckpt_path", "a.ckpt", "--batch_size", "1,4"], "export")
    assert (config.batch_size, config.export_batch_size) == (256, (1, 4))
    config = parse(["-c", str(path), "--ckpt_path", "a.ckpt", "--export_batch_size", "dynamic"], "export")
    assert (config.batch_size, config.export_batch_size) == (256, "dynamic")


@pytest.mark.parametrize(
    ("name", "older", "value", "wrong"),
    [
        ("export_batch_size", "batch_size", (1, 4), "0"),
        ("export_input", "input", "rgb", "grey"),
        ("export_head", "head", "topk", "neck"),
        ("export_weights", "weights", "fp16", "fp8"),
    ],
)
def test_exports_flags_have_the_names_of_the_keys_and_the_older_ones_are_read(write, name, older, value, wrong):
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    checkpoint = ["--ckpt_path", "a.ckpt"]
    assert getattr(load_yaml(write(f"{name}: [{text}]" if "," in text else f"{name}: {text}")), name) == value
    for flag in (name, older):
        config = parse([*checkpoint, f"--{flag}", text], "export")
        assert (getattr(config, name), config.given) == (value, {name, "ckpt_path"})
        assert error_of(parse, [*checkpoint, f"--{flag}", wrong], "export").startswith(f"--{name} must be ")
    if older not in SETTINGS:
        assert f"unknown key {older}; the nearest" not in error_of(load_yaml, write(f"{older}: {text}"))
        assert f"unknown flag --{older}" in error_of(train, f"--{older}", text)


@pytest.mark.parametrize(
    ("script", "has", "lacks"),
    [
        ("train", "--lr --opt --batch_size --ckpt_save_dir --mixup", "--output --file_format --pretrained"),
        ("validate", "--ckpt_path --batch_size --val_amp_level --allow_bad_images --output", "--lr --reparam --mixup"),
        ("export", "--ckpt_path --export_batch_size --file_format --reparam --output", "--lr --data_dir --batch_size"),
    ],
)
def test_help_shows_the_flags_of_the_script(capsys, script, has, lacks):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], script)
    assert ended.value.code == 0
    shown = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert set(has.split()) <= shown
    assert not set(lacks.split()) & shown


def test_help_explains_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse(["-h"], "train")
    text = " ".join(capsys.readouterr().out.split())
    for name, item in SETTINGS.items():
        if "T" in item.metadata["scripts"]:
            assert f"--{name} " in text
    assert "--lr X learning rate after the warm-up (default: 0.001)" in text
    assert "optimizer: --opt {sgd,momentum,adam,adamw,lamb}" in text


def test_help_says_where_preprocessing_comes_from(capsys):
    for script, origin in (("train", "the model's"), ("validate", "the checkpoint's")):
        with pytest.raises(SystemExit):
            parse(["-h"], script)
        text = " ".join(capsys.readouterr().out.split())
        assert f"--image_resize N [N ...] image side, or height and width (default: {origin})" in text


def test_averaged_weights_are_not_selected_where_there_are_none():
    with pytest.raises(UserError, match="ckpt_select ema keeps averaged weights: it needs ema True"):
        train("--ckpt_select", "ema")
    assert train("--ckpt_select", "ema", "--ema", "True").ckpt_select == "ema"
    assert train("--ckpt_select", "online").ckpt_select == "online"
