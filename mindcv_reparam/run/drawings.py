"""Images with what was found marked in them, one file each."""

from pathlib import Path

from mindcv_reparam.errors import UserError
from mindcv_reparam.files import written_whole
from mindcv_reparam.run.prediction import Prediction, Predictor

_QUALITY = 92  # of JPEG


class Drawings:
    """A folder of JPEG files that have the names of the images; of two images with one name, the later gets a number.

    Raises:
        UserError: what the model finds has no place in an image.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        results = predictor.results
        if not results.marks:
            raise UserError(f"--draw {folder}: {results.what} have no place in an image; --contact_sheet shows them")
        self._folder = folder
        self._predictor = predictor
        self._names: dict[str, int] = {}

    def write(self, prediction: Prediction) -> None:
        """Read the image again and write it. Raises UserError where the file system refuses."""
        stem = prediction.file.stem
        number = self._names[stem] = self._names.get(stem, 0) + 1
        path = self._folder / f"{stem}{f'-{number}' if number > 1 else ''}.jpg"
        if path.exists() and path.samefile(prediction.file):
            raise UserError(f"{path} is one of the images: draw into another folder")
        image = self._predictor.drawn(prediction)
        with written_whole(path) as temporary:
            image.save(temporary, format="JPEG", quality=_QUALITY)
