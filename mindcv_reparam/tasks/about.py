"""What a report says of a validation beside what was found."""

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy
import PIL

from mindcv_reparam import __version__
from mindcv_reparam.checkpoint_info import CheckpointInfo
from mindcv_reparam.config import Config
from mindcv_reparam.data.transforms import height_and_width
from mindcv_reparam.labels import read_labels
from mindcv_reparam.tasks.results import Label


@dataclass(frozen=True)
class About:
    """Where the numbers of a report come from.

    Attributes:
        title: of the page.
        facts: what was measured, where and how: titles and texts.
        label: what a class is called, by its index.
        classes: of the network.
        latency: seconds per image of the network alone, with ``latency_of`` to say of what; 0: not known.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    label: Label
    classes: int
    latency: float = 0.0
    latency_of: str = ""

    @property
    def latency_cards(self) -> list[tuple[str, str, str]]:
        """Name, number and note, where it is known."""
        return [("per image", f"{1000 * self.latency:.2f} ms", self.latency_of)] if self.latency else []


def about_of(
    config: Config, info: CheckpointInfo, facts: Sequence[tuple[str, str]], folders: Sequence[str], latency: float
) -> About:
    """Of the validation of a checkpoint.

    Args:
        facts: what was said of it before it began.
        folders: the classes of the data, which name those of a checkpoint that does not.
        latency: seconds per image of the network alone, in batches.
    """
    import mindspore

    names = read_labels(config.labels) if config.labels else info.labels or info.classes or folders
    height, width = height_and_width(config.image_resize)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (config.mean, config.std))
    versions = {"mindcv_reparam": __version__, "MindSpore": mindspore.__version__, "NumPy": numpy.__version__}
    versions |= {"Pillow": PIL.__version__, "Python": platform.python_version()}
    said = [
        *facts,
        ("weights from", info.source) if info.source else ("trained", f"{info.epoch} epochs, {info.weights} weights"),
        ("image size", f"{height} by {width}, crop {config.crop_pct:g}, {config.interpolation}"),
        ("normalised", f"mean {mean}; deviation {std}"),
        ("date", datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return About(
        title=f"{info.model} on {config.dataset}",
        facts=said,
        label=distinct(names),
        classes=info.hparams["num_classes"],
        latency=latency,
        latency_of=f"the network alone, in batches of {config.batch_size}, {mindspore.get_context('device_target')}",
    )


def distinct(names: Sequence[str]) -> Label:
    """What classes are called, with their index where two have one name or one has none."""
    repeated = {name for name, times in Counter(names).items() if times > 1}

    def label(index: int) -> str:
        name = names[index] if index < len(names) else str(index)
        return f"{name} ({index})" if name in repeated else name

    return label
