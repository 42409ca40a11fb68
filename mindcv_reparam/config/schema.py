"""What can be set: one flat, typed, frozen dataclass.

Keys keep MindCV's names, meanings and defaults, so its recipes run unchanged. MindCV's keys for what this project does
not do are accepted at the value that switches them off, see ``INACTIVE``.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

from mindcv_reparam.config.checks import check
from mindcv_reparam.errors import UserError
from mindcv_reparam.registry import model_info
from mindcv_reparam.settings import setting

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

# How image files become pixels: part of the preprocessing that checkpoints and bundles carry, with one default for all
# models.
DECODING = ("image_background", "exif_orientation")

_system = functools.partial(setting, "system")
_data = functools.partial(setting, "data set")
_augmentation = functools.partial(setting, "augmentation")
_model = functools.partial(setting, "model")
_checkpoint = functools.partial(setting, "checkpoints")
_training = functools.partial(setting, "training")
_optimizer = functools.partial(setting, "optimizer")
_rate = functools.partial(setting, "learning rate")
_loss = functools.partial(setting, "loss")
_probe = functools.partial(setting, "linear probe")
_distillation = functools.partial(setting, "distillation")
_detection = functools.partial(setting, "detection")
_precision = functools.partial(setting, "mixed precision")
_export = functools.partial(setting, "export")


@dataclass(frozen=True)
class Config:
    """Settings of four commands; the letters say which of them have the flag: train, validate, export, probe.

    ``given`` names the settings that the user wrote, in YAML or on the command line; the others hold defaults, which
    ``with_defaults`` replaces by what the model or the checkpoint asks for.
    """

    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False, kw_only=True)

    mode: Literal[0, 1] = _system("TVEP", 0, "graph mode (0) or PyNative mode (1)")
    distribute: bool | None = _system("T", None, "run on several devices; None: as launched (mpirun, msrun or neither)")
    device_target: Literal["Ascend", "CPU"] | None = _system("TVEP", None, "None: Ascend if there is one, else CPU")
    seed: int = _system("TVEP", 42, "seed of weights, data order and augmentation", at_least=0)
    jit_level: Literal["O0", "O1", "O2"] | None = _system(
        "TVP",
        None,
        "how far MindSpore compiles: O0 kernel by kernel, O1 fuses, O2 whole graphs on Ascend; None: its own choice",
    )
    deterministic: bool = _system("TV", False, "only kernels that always give the same bits, on Ascend; slower")
    profile: str = _system("T", "", "FIRST:LAST, steps that MindSpore's profiler records into ckpt_save_dir/profile")
    stall_timeout: float = _system(
        "TV", 600.0, "seconds without progress that end the job, naming the rank it waits for; 0: never", at_least=0
    )
    log_interval: int = _system("TV", 100, "steps between lines of the log", at_least=1)

    dataset: Literal["imagenet", "folder", "cifar10", "digits", "coco", "yolo", "scenes"] = _data(
        "TVEP",
        "imagenet",
        "imagenet or folder: any folder of class folders; cifar10: its binary files; digits: comes along; for "
        "detection, coco: any JSON file of its form; yolo: data.yaml and label files; scenes: comes along",
    )
    data_dir: str = _data("TVP", "./", "folder, tar archive or CSV list of the data; digits and scenes need none")
    labels: str = _data("TVEP", "", "file with the class folder of every output, a line each, where nothing else tells")
    train_split: str = _data("TP", "train", "folder or archive of the training images in data_dir")
    val_split: str = _data(
        "TVP", "val", "folder of the validation images in data_dir, or the part of the others to hold out, such as 0.1"
    )
    fold: str = _data(
        "TVP", "", "k/n: the k-th of n parts of the training images is held out, of every class equally many"
    )
    num_parallel_workers: int = _data("TVP", 8, "workers that read and augment images", at_least=1)
    shuffle: bool = _data("T", True, "shuffle the training images every epoch")
    balanced_sampling: bool = _data(
        "T", False, "as many images of every class in an epoch, those of small ones repeatedly"
    )
    eval_shuffle: bool = _data("TV", False, "shuffle the validation images")
    num_samples: int | None = _data("TVEP", None, "use this many images only", at_least=1)
    batch_size: int = _data("TVP", 128, "images per device and step", at_least=1)
    drop_remainder: bool = _data("T", True, "leave out the last, smaller training batch")
    allow_bad_images: bool = _data("TVP", False, "leave unreadable images out of a validation instead of stopping")

    image_resize: int | tuple[int, int] = _augmentation(
        "TVEP", 224, "image side, or height and width", at_least=1, inherited="model"
    )
    image_background: tuple[int, int, int] = _augmentation(
        "TVP", (255, 255, 255), "RGB behind transparent pixels", at_least=0, at_most=255, inherited="model"
    )
    exif_orientation: bool = _augmentation(
        "TVP", False, "turn images as their EXIF says; the reference pipelines do not", inherited="model"
    )
    scale: tuple[float, float] = _augmentation("T", (0.08, 1.0), "area range of the random crop", above=0)
    ratio: tuple[float, float] = _augmentation("T", (0.75, 1.333), "aspect range of the random crop", above=0)
    hflip: float = _augmentation("T", 0.5, "probability of a horizontal flip", at_least=0, at_most=1)
    vflip: float = _augmentation("T", 0.0, "probability of a vertical flip", at_least=0, at_most=1)
    color_jitter: float = _augmentation("T", 0.4, "colour jitter; auto_augment switches it off", at_least=0)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = _augmentation(
        "TVP", "bilinear", "resampling filter", inherited="model"
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
        "TVP", (0.485 * 255, 0.456 * 255, 0.406 * 255), "channel means of 0-255 data", inherited="model"
    )
    std: tuple[float, ...] = _augmentation(
        "TVP", (0.229 * 255, 0.224 * 255, 0.225 * 255), "channel deviations of 0-255 data", above=0, inherited="model"
    )
    normalize_on_device: bool = _augmentation(
        "TV", False, "send bytes to the device, a quarter; the graph normalises, erases and mixes them to the same bits"
    )
    crop_pct: float = _augmentation(
        "TVP", 0.875, "part of the image's side that validation keeps", above=0, at_most=1, inherited="model"
    )
    tta: Literal["none", "flip", "five_crop", "ten_crop"] = _augmentation(
        "V", "none", "test-time augmentation: probabilities averaged over an image and its mirror image, or over crops"
    )
    mixup: float = _augmentation("T", 0.0, "alpha of mixup, 0: off", at_least=0)
    cutmix: float = _augmentation("T", 0.0, "alpha of cutmix, 0: off", at_least=0)
    cutmix_prob: float = _augmentation("T", 1.0, "probability of mixing a batch at all", at_least=0, at_most=1)
    switch_prob: float = _augmentation("T", 0.5, "probability of cutmix where both are on", at_least=0, at_most=1)
    aug_repeats: int = _augmentation("T", 0, "repeated augmentation: views per image, 0 or 1: off", at_least=0)

    model: str | None = _model("TVEP", None, "name, see python -m mindcv_reparam list", inherited="checkpoint")
    num_classes: int | None = _model(
        "TVE", None, "classes; None: those of the data set", at_least=1, at_most=100_000, inherited="checkpoint"
    )
    in_channels: int = _model("TVEP", 3, "channels of the images", at_least=1, inherited="checkpoint")
    drop_rate: float = _model(
        "T",
        0.0,
        "dropout, where the model's class says",
        at_least=0,
        below=1,
    )
    drop_path_rate: float | None = _model("T", None, "stochastic depth; None: the model's own", at_least=0, below=1)
    gelu: Literal["tanh", "exact"] | None = _model(
        "TVEP", None, "form of GELU; None: the model's own", inherited="checkpoint"
    )

    ckpt_path: str = _checkpoint("TVEP", "", "checkpoint to start from, validate or export")
    resume: str = _checkpoint("T", "", "auto: go on with the run in ckpt_save_dir, if any; or the file to go on from")
    allow_config_change: bool = _checkpoint("T", False, "resume although settings have changed")
    ckpt_save_dir: str = _checkpoint(
        "TP", "./ckpt", "folder of checkpoints, metrics, curves and resolved configuration"
    )
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
    transfer_ahead: bool = _training(
        "T", False, "copy the next batch to an NPU while a step runs, from pinned memory; not run on Ascend here"
    )
    gradient_accumulation_steps: int = _training("T", 1, "batches per update", at_least=1)
    clip_grad: bool = _training("T", False, "limit the gradient's global norm to clip_value")
    clip_value: float = _training("T", 15.0, "largest gradient norm", above=0)
    ema: bool = _training("T", False, "keep an exponential moving average of the weights")
    ema_decay: float = _training("T", 0.9999, "its decay per update", at_least=0, below=1)
    ema_warmup: float = _training("T", 2000.0, "updates over which the decay grows, 0: constant", at_least=0)
    allreduce_mb: int | None = _training(
        "T",
        None,
        "megabytes of gradients that are sent together; None: 16 on a CPU, MindSpore's own choice elsewhere",
        at_least=1,
    )
    sync_bn: bool = _training("T", False, "batch statistics of all devices together, Ascend only")

    freeze: tuple[str, ...] = _training(
        "T",
        (),
        "what does not learn: backbone, all but the classifier; or what parameters' names begin with, as stem stages.0",
    )
    frozen_stages: int = _training(
        "T",
        -1,
        "stages, of the backbone if there is one, that do not learn; 0: the stem alone, -1: nothing",
        at_least=-1,
    )
    frozen_norms: bool = _training("T", False, "batch normalisations, of the backbone if there is one, do not learn")
    early_stopping: int = _training(
        "T", 0, "validations in a row without a better one that end the training; 0: never", at_least=0
    )

    opt: Literal["sgd", "momentum", "adam", "adamw", "lamb"] = _optimizer("T", "adam", "optimizer")
    momentum: float = _optimizer("T", 0.9, "of sgd and momentum", at_least=0, below=1)
    use_nesterov: bool = _optimizer("T", False, "Nesterov's momentum")
    weight_decay: float = _optimizer("T", 1e-6, "weight decay", at_least=0)
    weight_decay_filter: Literal["disable", "auto", "norm_and_bias", "1d", "by_name"] = _optimizer(
        "T",
        "disable",
        "what does not decay: nothing; norms; norms and biases; all one-dimensional tensors; RT-DETR's list of names",
    )
    backbone_lr_factor: float = _optimizer(
        "T", 1.0, "learning rate of a detector's backbone in parts of lr", above=0, at_most=1
    )
    head_lr_factor: float = _optimizer("T", 1.0, "learning rate of the classifier in parts of lr", above=0)
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
    class_weights: Literal["balanced"] | None = _loss(
        "TP", None, "balanced: all classes weigh the same in the loss, however many images they have"
    )
    label_smoothing: float = _loss("T", 0.0, "label smoothing", at_least=0, below=1)
    reduction: Literal["mean", "sum"] = _loss("T", "mean", "over the batch")

    probe_l2: float | None = _probe(
        "P", None, "weight of the classifier's squared norm; None: chosen on a fifth of the training images", above=0
    )

    distill: Literal["soft", "hard"] | None = _distillation(
        "T", None, "learn from the teacher's probabilities or from its most probable class"
    )
    teacher: str = _distillation("T", "", "model that teaches, or an exported .mindir file")
    teacher_ckpt: str = _distillation("T", "", "checkpoint of the teacher")
    distill_alpha: float = _distillation("T", 0.5, "weight of the teacher against the labels", at_least=0, at_most=1)
    distill_tau: float = _distillation("T", 1.0, "temperature of soft distillation", above=0)
    imitation_ckpt: str = _distillation(
        "T", "", "checkpoint of the network that the model imitates, which gives weights too"
    )
    imitation_in: float = _distillation("T", 0.0, "weight of the difference of block outputs", at_least=0)
    imitation_out: float = _distillation("T", 0.0, "weight of the difference of token mixer outputs", at_least=0)
    imitation_rel: float = _distillation("T", 0.0, "weight of the difference of token relations", at_least=0)
    imitation_epochs: tuple[int, int] = _distillation(
        "T", (400, 100), "epochs, from the first, of the first two terms and of the third", at_least=0
    )

    train_annotations: str = _detection(
        "TV", "", "coco: JSON file of the training images; by default instances_*.json in data_dir/annotations"
    )
    val_annotations: str = _detection("TV", "", "coco: JSON file of the validation images")
    max_boxes: int = _detection("T", 100, "objects of a training image, at most; of more, the largest", at_least=1)
    photometric: float = _detection("T", 0.5, "probability of each photometric distortion", at_least=0, at_most=1)
    zoom_out: float = _detection("T", 0.5, "probability of zooming out", at_least=0, at_most=1)
    iou_crop: float = _detection("T", 0.8, "probability of a crop around objects", at_least=0, at_most=1)
    multi_scale: tuple[int, ...] = _detection(
        "T", (), "sides of square images, one of which is drawn for every step; none: image_resize", at_least=32
    )
    plain_epochs: int = _detection("T", 0, "last epochs, which do without these four", at_least=0)
    denoising_queries: int = _detection("T", 200, "queries made of objects with noise", at_least=2)
    label_noise: float = _detection(
        "T", 0.5, "twice the probability that a denoising query has another class", at_least=0, at_most=1
    )
    box_noise: float = _detection("T", 1.0, "how far its corners move, in halves of its sides", at_least=0)
    class_loss: Literal["vfl", "focal", "bce"] = _detection(
        "T", "vfl", "loss of the queries' classes: varifocal, focal or binary cross-entropy"
    )
    backbone_ckpt: str = _detection("T", "", "checkpoint of a classifier or detector, for the weights of the backbone")

    amp_level: Literal["O0", "O1", "O2", "O3"] = _precision(
        "T", "O0", "float16 for O0: nothing; O1: convolutions and dense; O2: all but norms; O3: all"
    )
    val_amp_level: Literal["O0", "O1", "O2", "O3"] = _precision("V", "O0", "the same for validate")
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
        "E", (1,), "images per call: one size, several, or dynamic", older_flag="batch_size", at_least=1
    )
    dynamic_image_size: bool = _export("E", False, "let the images' size vary, where the architecture does")
    export_input: Literal["normalized", "rgb", "bgr"] = _export(
        "E",
        "normalized",
        "float32 NCHW as preprocessing makes it, or bytes NHWC that the model normalises",
        older_flag="input",
    )
    # Words that the tasks share; each says which it has and what it means by them.
    export_head: Literal["logits", "softmax", "topk", "features"] | None = _export(
        "E", None, "outputs; of classifiers logits (the default), probabilities, the largest, maps", older_flag="head"
    )
    top_k: int | None = _export("E", None, "what the head topk gives: 5 classes, 300 detections by default", at_least=1)
    export_weights: Literal["fp32", "fp16"] = _export(
        "E", "fp32", "precision of the weights in the file", older_flag="weights"
    )
    opset: int = _export("E", 17, "version of ONNX's operators", at_least=11, at_most=21)
    verify_data: str = _export(
        "E", "", "compare accuracies with the checkpoint's on this data set: a folder, or digits or scenes"
    )
    report: str = _export("V", "", "folder for a page of what was found, with tables of every image")
    output: str | None = _export("VE", None, "validate: JSON file of the results; export: folder of the bundle")

    def __post_init__(self) -> None:
        check(self)

    def required_model(self) -> str:
        """The model's name, for what cannot do without. Raises UserError where there is none."""
        if not self.model:
            raise UserError("no model: give --model NAME; python -m mindcv_reparam list shows the names")
        return self.model

    def preprocessing(self) -> dict[str, Any]:
        """What images go through before the network, as its checkpoint tells it. Raises UserError without a model."""
        names = (*model_info(self.required_model()).preprocessing, *DECODING)
        return {name: getattr(self, name) for name in names}

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
