"""The configuration: one flat, typed, frozen dataclass, read from YAML and then from the command line.

Keys keep MindCV's names, meanings and defaults, so its recipes run unchanged. MindCV's keys for what this project does
not do are accepted at the value that switches them off, see ``INACTIVE``.
"""

import argparse
import dataclasses
import functools
import math
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mindcv_reparam.errors import Parser, UserError, nearest
from mindcv_reparam.files import written_whole
from mindcv_reparam.registry import model_info
from mindcv_reparam.settings import Text, choices, elements, members, read, setting, takes_several

SCRIPTS = {
    "train": "Train a model; every key may stand in the YAML file, flags override it.",
    "validate": "Measure top-1, top-5 and loss of a checkpoint.",
    "export": "Re-parameterize a checkpoint and write a deployment bundle whose files compute what the network does.",
}

# MindCV's keys that nothing here acts on: type, the value that means "off", and what to do instead of setting it.
INACTIVE: dict[str, tuple[Any, Any, str]] = {
    "dataset_download": (bool, False, "data sets are not downloaded: put the files under data_dir"),
    "pretrained": (bool, False, "weights are not downloaded: name a checkpoint by ckpt_path"),
    "aug_splits": (int, 0, "augmentation splits are not supported"),
    "num_cycles": (int, 1, "the cosine has one cycle"),
    "cycle_decay": (float, 1.0, "the cosine has one cycle"),
    "aux_factor": (float, 0.0, "no model here has an auxiliary head"),
    "resume_opt": (bool, False, "resume auto goes on with the run in ckpt_save_dir, optimizer and all"),
    "amp_cast_list": (str | None, None, "amp_level alone chooses the precision"),
}

_system = functools.partial(setting, "system")
_data = functools.partial(setting, "data set")
_augmentation = functools.partial(setting, "augmentation")
_model = functools.partial(setting, "model")
_checkpoint = functools.partial(setting, "checkpoints")
_training = functools.partial(setting, "training")
_optimizer = functools.partial(setting, "optimizer")
_rate = functools.partial(setting, "learning rate")
_loss = functools.partial(setting, "loss")
_distillation = functools.partial(setting, "distillation")
_precision = functools.partial(setting, "mixed precision")
_export = functools.partial(setting, "export")


@dataclass(frozen=True)
class Config:
    """Settings of the three scripts; the letters say which of them have the flag: train, validate, export.

    ``given`` names the settings that the user wrote, in YAML or on the command line; the others hold defaults, which
    ``with_defaults`` replaces by what the model or the checkpoint asks for.
    """

    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False, kw_only=True)

    mode: Literal[0, 1] = _system("TVE", 0, "graph mode (0) or PyNative mode (1)")
    distribute: bool | None = _system("T", None, "run on several devices; None: as launched (mpirun, msrun or neither)")
    device_target: Literal["Ascend", "CPU"] | None = _system("TVE", None, "None: Ascend if there is one, else CPU")
    seed: int = _system("TVE", 42, "seed of weights, data order and augmentation", at_least=0)
    log_interval: int = _system("TV", 100, "steps between lines of the log", at_least=1)

    dataset: Literal["imagenet", "cifar10", "digits"] = _data(
        "TVE", "imagenet", "imagenet: any folder of class folders; cifar10: its binary files; digits: comes along"
    )
    data_dir: str = _data("TV", "./", "folder of the data set; digits needs none")
    train_split: str = _data("T", "train", "folder of the training images in data_dir")
    val_split: str = _data("TV", "val", "folder of the validation images in data_dir")
    num_parallel_workers: int = _data("TV", 8, "workers that read and augment images", at_least=1)
    shuffle: bool = _data("T", True, "shuffle the training images every epoch")
    eval_shuffle: bool = _data("TV", False, "shuffle the validation images")
    num_samples: int | None = _data("TVE", None, "use this many images only", at_least=1)
    batch_size: int = _data("TV", 128, "images per device and step", at_least=1)
    drop_remainder: bool = _data("T", True, "leave out the last, smaller training batch")
    allow_bad_images: bool = _data("TV", False, "leave unreadable images out of a validation instead of stopping")

    image_resize: int | tuple[int, int] = _augmentation(
        "TVE", 224, "image side, or height and width", at_least=1, inherited="model"
    )
    scale: tuple[float, float] = _augmentation("T", (0.08, 1.0), "area range of the random crop", above=0)
    ratio: tuple[float, float] = _augmentation("T", (0.75, 1.333), "aspect range of the random crop", above=0)
    hflip: float = _augmentation("T", 0.5, "probability of a horizontal flip", at_least=0, at_most=1)
    vflip: float = _augmentation("T", 0.0, "probability of a vertical flip", at_least=0, at_most=1)
    color_jitter: float = _augmentation("T", 0.4, "colour jitter; auto_augment switches it off", at_least=0)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = _augmentation(
        "TV", "bilinear", "resampling filter", inherited="model"
    )
    auto_augment: str | None = _augmentation("T", None, "policy such as autoaug or rand-m9-mstd0.5-inc1")
    re_prob: float = _augmentation("T", 0.0, "probability of random erasing", at_least=0, at_most=1)
    re_scale: tuple[float, float] = _augmentation("T", (0.02, 0.33), "area range of the erased box", above=0)
    re_ratio: tuple[float, float] = _augmentation("T", (0.3, 3.3), "aspect range of the erased box", above=0)
    re_value: float | tuple[float, ...] = _augmentation(
        "T", 0.0, "fill of re_mode const after normalisation, 0: mean colour"
    )
    re_mode: Literal["const", "rand", "pixel"] = _augmentation(
        "T", "const", "fill the erased box with re_value, one random colour, or a random colour per pixel"
    )
    re_max_attempts: int = _augmentation("T", 10, "tries to place a box in the image", at_least=1)
    mean: tuple[float, ...] = _augmentation(
        "TV", (0.485 * 255, 0.456 * 255, 0.406 * 255), "channel means of 0-255 data", inherited="model"
    )
    std: tuple[float, ...] = _augmentation(
        "TV", (0.229 * 255, 0.224 * 255, 0.225 * 255), "channel deviations of 0-255 data", above=0, inherited="model"
    )
    crop_pct: float = _augmentation(
        "TV", 0.875, "part of the image's side that validation keeps", above=0, at_most=1, inherited="model"
    )
    mixup: float = _augmentation("T", 0.0, "alpha of mixup, 0: off", at_least=0)
    cutmix: float = _augmentation("T", 0.0, "alpha of cutmix, 0: off", at_least=0)
    cutmix_prob: float = _augmentation("T", 1.0, "probability of mixing a batch at all", at_least=0, at_most=1)
    switch_prob: float = _augmentation("T", 0.5, "probability of cutmix where both are on", at_least=0, at_most=1)
    aug_repeats: int = _augmentation("T", 0, "repeated augmentation: views per image, 0 or 1: off", at_least=0)

    model: str | None = _model("TVE", None, "name, see python -m mindcv_reparam list", inherited="checkpoint")
    num_classes: int | None = _model(
        "TVE", None, "classes; None: those of the data set", at_least=1, inherited="checkpoint"
    )
    in_channels: int = _model("TVE", 3, "channels of the images", at_least=1, inherited="checkpoint")
    drop_rate: float = _model("T", 0.0, "dropout before the classifier", at_least=0, below=1)
    drop_path_rate: float | None = _model("T", None, "stochastic depth; None: the model's own", at_least=0, below=1)
    gelu: Literal["tanh", "exact"] | None = _model(
        "TVE", None, "form of GELU; None: the model's own", inherited="checkpoint"
    )

    ckpt_path: str = _checkpoint("TVE", "", "checkpoint to start from, validate or export")
    resume: str = _checkpoint("T", "", "auto: go on with the run in ckpt_save_dir, if any; or the file to go on from")
    allow_config_change: bool = _checkpoint("T", False, "resume although settings have changed")
    ckpt_save_dir: str = _checkpoint("T", "./ckpt", "folder of checkpoints, metrics, curves and resolved configuration")
    ckpt_save_interval: int = _checkpoint("T", 1, "epochs between checkpoints", at_least=1)
    ckpt_save_policy: Literal["latest_k", "top_k"] | None = _checkpoint("T", "latest_k", "which to keep; None: all")
    keep_checkpoint_max: int = _checkpoint("T", 10, "checkpoints to keep", at_least=1)
    ckpt_select: Literal["ema", "online"] | None = _checkpoint(
        "T", None, "the weights that are kept, by their accuracy; None: ema where it is on; best and final keep both"
    )

    epoch_size: int = _training("T", 90, "epochs", at_least=1)
    tensorboard: bool = _training("T", False, "write losses, rates and accuracies for TensorBoard, too")
    val_while_train: bool = _training("T", False, "validate during the training")
    val_interval: int = _training("T", 1, "epochs between validations", at_least=1)
    dataset_sink_mode: bool = _training("T", True, "accepted for MindCV's sake: batches are fed step by step")
    gradient_accumulation_steps: int = _training("T", 1, "batches per update", at_least=1)
    clip_grad: bool = _training("T", False, "limit the gradient's global norm to clip_value")
    clip_value: float = _training("T", 15.0, "largest gradient norm", above=0)
    ema: bool = _training("T", False, "keep an exponential moving average of the weights")
    ema_decay: float = _training("T", 0.9999, "its decay per update", at_least=0, below=1)
    ema_warmup: float = _training("T", 2000.0, "updates over which the decay grows, 0: constant", at_least=0)
    sync_bn: bool = _training("T", False, "batch statistics of all devices together, Ascend only")

    opt: Literal["sgd", "momentum", "adam", "adamw", "lamb"] = _optimizer("T", "adam", "optimizer")
    momentum: float = _optimizer("T", 0.9, "of sgd and momentum", at_least=0, below=1)
    use_nesterov: bool = _optimizer("T", False, "Nesterov's momentum")
    weight_decay: float = _optimizer("T", 1e-6, "weight decay", at_least=0)
    weight_decay_filter: Literal["disable", "auto", "norm_and_bias", "1d"] = _optimizer(
        "T", "disable", "what does not decay: nothing; norms; norms and biases; all one-dimensional tensors"
    )
    layer_decay: float | None = _optimizer("T", None, "learning rate factor from layer to layer", above=0, at_most=1)
    # MindCV hands its default of 1e-10 to rmsprop only; its AdamW runs with 1e-8.
    eps: float = _optimizer("T", 1e-8, "term in the denominator", above=0)

    scheduler: Literal["constant", "cosine_decay", "exponential_decay", "step_decay", "multi_step_decay"] = _rate(
        "T", "cosine_decay", "course of the learning rate after the warm-up"
    )
    lr: float = _rate("T", 0.001, "learning rate after the warm-up", above=0)
    min_lr: float = _rate("T", 1e-6, "where cosine_decay ends", at_least=0)
    warmup_epochs: int = _rate("T", 3, "epochs of linear warm-up", at_least=0)
    warmup_factor: float = _rate("T", 0.0, "the warm-up starts at this part of lr", at_least=0, at_most=1)
    decay_epochs: int = _rate("T", 100, "length of cosine_decay, or of a step of step_decay", at_least=1)
    decay_rate: float = _rate("T", 0.9, "factor of the other decays", above=0, at_most=1)
    multi_step_decay_milestones: tuple[int, ...] = _rate("T", (30, 60, 90), "epochs of multi_step_decay", at_least=1)
    lr_epoch_stair: bool = _rate("T", False, "change the rate once per epoch instead of every step")
    warmup_prefix: bool = _rate(
        "T", True, "count the decay's epochs from the end of the warm-up, or else from the start"
    )
    lr_scale: Literal["none", "linear"] = _rate(
        "T", "none", "linear: lr and min_lr are meant for lr_base_batch and grow with the images per update"
    )
    lr_base_batch: int | None = _rate("T", None, "images per update that lr is meant for", at_least=1)

    loss: Literal["CE", "BCE"] = _loss("T", "CE", "cross-entropy or binary cross-entropy")
    label_smoothing: float = _loss("T", 0.0, "label smoothing", at_least=0, below=1)
    reduction: Literal["mean", "sum"] = _loss("T", "mean", "over the batch")

    distill: Literal["soft", "hard"] | None = _distillation(
        "T", None, "learn from the teacher's probabilities or from its most probable class"
    )
    teacher: str = _distillation("T", "", "model that teaches, or an exported .mindir file")
    teacher_ckpt: str = _distillation("T", "", "checkpoint of the teacher")
    distill_alpha: float = _distillation("T", 0.5, "weight of the teacher against the labels", at_least=0, at_most=1)
    distill_tau: float = _distillation("T", 1.0, "temperature of soft distillation", above=0)
    imitation_ckpt: str = _distillation(
        "T", "", "RIFormer: checkpoint of the PoolFormer of its size, which gives weights and is imitated"
    )
    imitation_in: float = _distillation("T", 0.0, "weight of the difference of block outputs", at_least=0)
    imitation_out: float = _distillation("T", 0.0, "weight of the difference of token mixer outputs", at_least=0)
    imitation_rel: float = _distillation("T", 0.0, "weight of the difference of token relations", at_least=0)
    imitation_epochs: tuple[int, int] = _distillation(
        "T", (400, 100), "epochs, from the first, of the first two terms and of the third", at_least=0
    )

    amp_level: Literal["O0", "O1", "O2", "O3"] = _precision(
        "T", "O0", "float16 for O0: nothing; O1: convolutions and dense; O2: all but norms; O3: all"
    )
    val_amp_level: Literal["O0", "O1", "O2", "O3"] = _precision("V", "O0", "the same for validate.py")
    loss_scale_type: Literal["fixed", "dynamic"] = _precision("T", "fixed", "loss scaling")
    loss_scale: float = _precision("T", 1.0, "the scale, or where dynamic starts", above=0)
    drop_overflow_update: bool = _precision("T", False, "skip updates whose gradients overflowed")

    reparam: Literal["full", "branches", "none"] = _export(
        "E", "full", "re-parameterization: every exact fold; parallel branches only; none"
    )
    file_format: tuple[Literal["MINDIR", "ONNX", "AIR"], ...] = _export(
        "E", ("MINDIR",), "files to write, one or several; AIR on an Ascend host only"
    )
    export_batch_size: tuple[int, ...] | Literal["dynamic"] = _export(
        "E", (1,), "images per call: one size, several, or dynamic", flag="batch_size", at_least=1
    )
    dynamic_image_size: bool = _export("E", False, "let the images' size vary, where the architecture does")
    export_input: Literal["normalized", "rgb", "bgr"] = _export(
        "E",
        "normalized",
        "float32 NCHW as preprocessing makes it, or bytes NHWC that the model normalises",
        flag="input",
    )
    export_head: Literal["logits", "softmax", "topk", "features"] = _export(
        "E", "logits", "outputs: logits, probabilities, the largest of them, or the stages' maps", flag="head"
    )
    top_k: int = _export("E", 5, "classes that the head topk gives", at_least=1)
    export_weights: Literal["fp32", "fp16"] = _export(
        "E", "fp32", "precision of the weights in the file", flag="weights"
    )
    opset: int = _export("E", 17, "version of ONNX's operators", at_least=11, at_most=21)
    labels: str = _export("E", "", "file of class names, one a line, where the checkpoint has none")
    verify_data: str = _export("E", "", "data set on which to compare the files' accuracy with the checkpoint's")
    output: str | None = _export("VE", None, "validate: JSON file of the results; export: folder of the bundle")

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "re_scale", "re_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"{name} must be a range from low to high, got {low:g}, {high:g}")
        if len(self.mean) != len(self.std):
            raise UserError(f"mean has {len(self.mean)} channels and std {len(self.std)}: give one of each per channel")
        if self.scheduler == "cosine_decay" and self.min_lr > self.lr:
            raise UserError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}: cosine_decay goes from lr down to min_lr")
        if self.lr_scale == "linear" and self.lr_base_batch is None:
            raise UserError("lr_scale linear needs lr_base_batch, the images per update that lr is meant for")
        if self.ckpt_save_policy == "top_k" and not self.val_while_train:
            raise UserError("ckpt_save_policy top_k keeps the most accurate checkpoints: it needs val_while_train True")
        if self.ckpt_select == "ema" and not self.ema:
            raise UserError("ckpt_select ema keeps averaged weights: it needs ema True")
        self._check_distillation()

    def _check_distillation(self) -> None:
        if self.distill and not self.teacher:
            raise UserError(f"distill {self.distill} needs a teacher: name a model, or an exported .mindir file")
        if self.teacher and not self.distill:
            raise UserError("a teacher is named but not asked: set distill to soft or hard")
        if self.distill and self.reduction != "mean":
            raise UserError(f"distill {self.distill} takes the mean over the batch: it needs reduction mean")
        exported = self.teacher.endswith(".mindir")
        if self.teacher and not exported and not self.teacher_ckpt:
            raise UserError(f"the teacher {self.teacher} needs trained weights: name them by teacher_ckpt")
        if self.teacher_ckpt and (exported or not self.teacher):
            raise UserError("teacher_ckpt is the checkpoint of a teacher that is named as a model, by teacher")
        for name in ("imitation_in", "imitation_out", "imitation_rel"):
            if getattr(self, name) and not self.imitation_ckpt:
                raise UserError(f"{name} needs the PoolFormer to imitate: name its checkpoint by imitation_ckpt")

    def with_defaults(self, **values: Any) -> "Config":
        """A copy with other values where the user gave none, or None: what the model or the checkpoint asks for."""
        unset = {name: v for name, v in values.items() if name not in self.given or getattr(self, name) is None}
        return dataclasses.replace(self, **unset)

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of ``create_model`` that the user wrote."""
        names = {"num_classes": "num_classes", "in_channels": "in_channels", "image_resize": "img_size", "gelu": "gelu"}
        values = {argument: getattr(self, name) for name, argument in names.items() if name in self.given}
        return {argument: value for argument, value in values.items() if value is not None}


SETTINGS = {item.name: item for item in dataclasses.fields(Config) if item.name != "given"}
_HINTS = typing.get_type_hints(Config)


def parse(argv: list[str] | None, script: str) -> Config:
    """The configuration of a script ("train", "validate" or "export"): defaults, then YAML, then the flags.

    Raises:
        UserError: a key, flag or value that is not valid, naming where it stands and the nearest valid one; a setting
            without which the script cannot run.
    """
    parser = _parser(script)
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        for flag in {word.split("=")[0] for word in rest} & {f"--{_flag(name)}" for name in SETTINGS}:
            raise UserError(f"{script}.py has no flag {flag}: it does not use that setting; see --help")
        parser.refuse(rest)
    texts = vars(arguments)
    path = texts.pop("config", None)
    values = _read_yaml(path) if path else {}
    for name, text in texts.items():
        values |= _convert(name, " ".join(text) if isinstance(text, list) else text, where="--", label=_flag(name))
    config = Config(**values, given=frozenset(values))
    if script == "train" and not config.model:
        raise UserError("no model: give --model NAME; python -m mindcv_reparam list shows the names")
    if script != "train" and not config.ckpt_path:
        raise UserError(f"no checkpoint: {script}.py needs --ckpt_path FILE")
    return config


def load_yaml(path: str | os.PathLike[str]) -> Config:
    """The configuration a YAML file describes; what it leaves out keeps its default."""
    values = _read_yaml(path)
    return Config(**values, given=frozenset(values))


def save_yaml(config: Config, path: str | os.PathLike[str]) -> None:
    """Write every setting, grouped; ``load_yaml`` reads an equal configuration back."""
    lines, group = [], None
    for name, item in SETTINGS.items():
        value = getattr(config, name)
        if item.metadata["group"] != group:
            group = item.metadata["group"]
            lines.append(f"# {group}\n")
        if isinstance(value, tuple):
            lines.append(yaml.safe_dump({name: list(value)}, default_flow_style=None, width=math.inf))
        else:
            lines.append(yaml.safe_dump({name: value}, allow_unicode=True, width=math.inf))
    with written_whole(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def _parser(script: str) -> Parser:
    """A parser that only collects text, so that flags and YAML values are converted and refused alike."""
    parser = Parser(
        prog=f"{script}.py",
        usage="%(prog)s [-c FILE] [--SETTING VALUE ...]",
        description=SCRIPTS[script],
        argument_default=argparse.SUPPRESS,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=34, width=110),
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file of settings; flags override it")
    groups: dict[str, Any] = {}
    for name, item in SETTINGS.items():
        group = item.metadata["group"]
        if script[0].upper() not in item.metadata["scripts"]:
            continue
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(
            f"--{_flag(name)}", dest=name, help=_help(name, script), **_shape(name, _HINTS[name])
        )
    for name, (hint, _, _) in INACTIVE.items():
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **_shape(name, hint))
    return parser


def _flag(name: str) -> str:
    return SETTINGS[name].metadata["flag"] or name if name in SETTINGS else name


def _shape(name: str, hint: Any) -> dict[str, Any]:
    """How many words a flag takes, and what the help calls them."""
    path = name.endswith(("_dir", "_path", "_ckpt")) or name in ("output", "labels", "verify_data")
    kinds = {bool: "BOOL", int: "N", float: "X", str: "PATH" if path else "NAME"}
    listed = choices(hint)
    metavar = next(
        (word for kind, word in kinds.items() if kind in elements(hint)), "{" + ",".join(map(str, listed)) + "}"
    )
    if bool in members(hint):
        return {"nargs": "?", "const": "True", "metavar": metavar}
    return {"nargs": "+" if takes_several(hint) else None, "metavar": metavar}


def _help(name: str, script: str) -> str:
    item = SETTINGS[name]
    default = item.default
    if isinstance(default, tuple):
        default = ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
    if item.metadata["inherited"] and script != "train":
        default = "the checkpoint's"
    elif item.metadata["inherited"] == "model":
        default = "the model's"
    shown = item.metadata["help"] if default == "" else f"{item.metadata['help']} (default: {default})"
    return shown.replace("%", "%%")


def _convert(name: str, text: Text, where: str, label: str) -> dict[str, Any]:
    """The settings that one key and its text stand for: itself, or none for an inactive key that is off."""
    if name == "re_value" and text == "random":  # MindCV's way to ask for a random colour per pixel
        return {"re_mode": "pixel"}
    try:
        if name not in INACTIVE:
            value = read(label, _HINTS[name], SETTINGS[name].metadata["limits"], text)
            if name == "model" and value is not None:
                _check_model(value, where + label)
            return {name: value}
        hint, off, instead = INACTIVE[name]
        if read(label, hint, {}, text) != off:
            raise ValueError(f"{label} can only be {off}: {instead}")
    except ValueError as error:
        raise UserError(f"{where}{error}") from None
    return {}


def _check_model(name: str, where: str) -> None:
    try:
        model_info(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings a YAML file gives, converted."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in _compose(path):
        name, line = str(key.value), key.start_mark.line + 1
        where = f"{path}:{line}: "
        if name in lines:
            raise UserError(f"{where}{name} was set before, in line {lines[name]}: keep one of the two")
        lines[name] = line
        if name not in SETTINGS and name not in INACTIVE:
            raise UserError(f"{where}unknown key {name}; the nearest is {nearest(name, SETTINGS)}")
        values |= _convert(name, _text(value, f"{path}:{value.start_mark.line + 1}: {name}"), where, name)
    return values


def _compose(path: str | os.PathLike[str]) -> list[tuple[yaml.Node, yaml.Node]]:
    """Key and value nodes of a YAML mapping, which unlike a dict know their lines and repeat repeated keys."""
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the configuration {path} is not a text file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML, {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML, {str(error).splitlines()[0]}") from None
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: expected lines of the form key: value")
    return node.value


def _text(node: yaml.Node, where: str) -> Text:
    """A value as the user wrote it."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [item.value for item in node.value]
    raise UserError(f"{where} must be a single value or a list, got a mapping or a nested list")
