"""Where images could come from: a folder of JPEGs, a MindRecord file of the same JPEGs, or pixels decoded before.

python benchmarks/input_storage.py [--images 512] [--rounds 7]

Every storage takes its turn in every round: all images once, and once more with what it takes to make them pixels. The
files are in the page cache, so figures are of the processor (all threads of the process), not of a disk. Sizes are
those of the generated images (500×375 pixels), and of as many as ImageNet has; a MindRecord file rounds up to 32 MB.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from input_pipeline import write_images
from mindspore import dataset
from mindspore.mindrecord import FileReader, FileWriter
from report import machine, markdown, save

from mindcv_reparam.data.image_folder import decode
from mindcv_reparam.errors import Parser, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGENET = 1_281_167
HEADER = ("storage", "read (ms/img)", "to pixels (ms/img)", "KB/img", "GB for ImageNet")


@dataclass
class Storage:
    """``read()`` yields all images once, as JPEGs or as pixels; times are processor milliseconds per image."""

    name: str
    size: int  # bytes of all images
    read: Callable[[], Iterator[bytes | np.ndarray]]
    reading: list[float] = field(default_factory=list)
    to_pixels: list[float] = field(default_factory=list)

    def run(self, count: int) -> None:
        for times, finish in ((self.reading, lambda item: item), (self.to_pixels, pixels_of)):
            start = time.process_time()
            seen = sum(1 for item in self.read() if finish(item) is not None)
            assert seen == count, f"{self.name}: {seen} images of {count}"
            times.append(1000 * (time.process_time() - start) / count)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="a multiple of 256")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), args.images)
        some = storages(sorted(Path(folder).rglob("*.jpg")), Path(folder))
        for _ in range(args.rounds + 1):  # the first one warms up
            for one in some:
                one.run(args.images)
    table = [row(one, args.images) for one in some]
    print(markdown(HEADER, table))
    results = {
        "machine": machine("mindspore", "simplejpeg"),
        **vars(args),
        "table": [dict(zip(HEADER, one)) for one in table],
    }
    save("input_storage", results, lambda figure: draw(figure, some))
    return 0


def pixels_of(item: bytes | np.ndarray) -> np.ndarray:
    return decode(item) if isinstance(item, bytes) else item


def storages(files: Sequence[Path], folder: Path) -> list[Storage]:
    """All of them hand out the images in one random order, but MindRecord's, which have orders of their own."""
    jpegs = [file.read_bytes() for file in files]
    record = write_record(folder / "images.mindrecord", jpegs)
    decoded = [decode(jpeg) for jpeg in jpegs]
    shape, order = decoded[0].shape, np.random.default_rng(0).permutation(len(files)).tolist()
    (folder / "pixels").write_bytes(b"".join(one.tobytes() for one in decoded))
    mapped = np.memmap(folder / "pixels", np.uint8, "r", shape=(len(files), *shape))
    in_jpegs, in_pixels = sum(map(len, jpegs)), sum(one.nbytes for one in decoded)

    def through_mindspore() -> Iterator[bytes]:
        rows = dataset.MindDataset(str(record), ["data"], num_parallel_workers=1, shuffle=True)
        for (data,) in rows.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False):
            yield data.tobytes()

    def in_file_order() -> Iterator[bytes]:
        reader = FileReader(str(record), num_consumer=1)
        try:
            yield from (sample["data"] for sample in reader.get_next())
        finally:
            reader.close()

    return [
        Storage("folder of JPEGs (used)", in_jpegs, lambda: (files[index].read_bytes() for index in order)),
        Storage("MindRecord, shuffled by MindDataset", in_jpegs, through_mindspore),
        Storage("MindRecord, FileReader in the file's order", in_jpegs, in_file_order),
        Storage("JPEGs in memory", in_jpegs, lambda: (jpegs[index] for index in order)),
        Storage("pixels in a mapped file", in_pixels, lambda: (np.array(mapped[index]) for index in order)),
        Storage("pixels in memory", in_pixels, lambda: (decoded[index].copy() for index in order)),
    ]


def write_record(path: Path, jpegs: Sequence[bytes]) -> Path:
    writer = FileWriter(str(path))
    writer.add_schema({"label": {"type": "int32"}, "data": {"type": "bytes"}}, "JPEG files")
    writer.write_raw_data([{"label": 0, "data": jpeg} for jpeg in jpegs])
    writer.commit()
    return path


def row(storage: Storage, count: int) -> list[str]:
    times = (f"{statistics.median(some[1:]):.3f}" for some in (storage.reading, storage.to_pixels))
    return [storage.name, *times, f"{storage.size / count / 1e3:.0f}", f"{storage.size / count * IMAGENET / 1e9:.0f}"]


def draw(figure: "Figure", some: list[Storage]) -> None:
    axis = figure.subplots()
    names = [one.name for one in some]
    axis.barh(names, [statistics.median(one.to_pixels[1:]) for one in some], color="lightgrey", label="to pixels")
    axis.barh(names, [statistics.median(one.reading[1:]) for one in some], color="tab:blue", label="read")
    axis.invert_yaxis()
    axis.set_xlabel("processor milliseconds per image")
    axis.legend()


if __name__ == "__main__":
    run_script(main)
