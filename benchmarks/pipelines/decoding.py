"""Decoding alone, the bound of every pipeline. Arguments: folder, threads, "pillow", "simplejpeg" or "mindspore"."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rounds import serve

CHUNK = 64
folder, threads, decoder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
files = sorted(Path(folder).rglob("*.jpg"))


def with_pillow(file: Path) -> None:
    from PIL import Image

    with Image.open(file) as image:
        image.load()


def with_simplejpeg(file: Path) -> None:
    import simplejpeg

    simplejpeg.decode_jpeg(file.read_bytes())


def in_threads() -> Iterator[int]:
    decode = {"pillow": with_pillow, "simplejpeg": with_simplejpeg}[decoder]
    with ThreadPoolExecutor(threads) as executor:
        for number, _ in enumerate(executor.map(decode, files), start=1):
            if number % CHUNK == 0:
                yield CHUNK


def in_mindspore() -> Iterator[int]:
    from mindspore import dataset

    images = dataset.ImageFolderDataset(folder + "/train", num_parallel_workers=threads, decode=False)
    images = images.map(dataset.vision.Decode(), "image", num_parallel_workers=threads)
    rows = images.create_tuple_iterator(num_epochs=1, output_numpy=True, do_copy=False)
    for number, _ in enumerate(rows, start=1):
        if number % CHUNK == 0:
            yield CHUNK


serve(in_mindspore if decoder == "mindspore" else in_threads)
