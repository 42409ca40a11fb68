"""Which images two classifiers tell apart differently, and whether one of them is better."""

from collections.abc import Iterator, Sequence

import numpy as np

from mindcv_reparam.data.source import ImageSource
from mindcv_reparam.errors import require
from mindcv_reparam.files import shown
from mindcv_reparam.tasks.classification.results import most_probable, softmax
from mindcv_reparam.tasks.results import Label

_LIKELY = 0.05  # p above which a difference is taken for chance


class ClassChanges:
    """Top-1 predictions of two models on the same labelled images.

    Args:
        kinds: of the outputs of the first and of the second model.
        label: what a class is called, by its index.
    """

    def __init__(self, kinds: tuple[str, str], source: ImageSource, label: Label) -> None:
        require("scipy")
        self._kinds = kinds
        self._source = source
        self._label = label
        self._rows: list[np.ndarray] = []
        self._apart = np.zeros(3)  # largest difference of probabilities and of logits, and largest logit

    def add(
        self, first: Sequence[np.ndarray], second: Sequence[np.ndarray], indices: np.ndarray, valid: np.ndarray
    ) -> None:
        labels = np.array([self._source.target(index) for index in indices.tolist()])
        pair = [[output[valid] for output in outputs] for outputs in (first, second)]
        told = [_best(outputs, kind) for outputs, kind in zip(pair, self._kinds)]
        self._rows.append(np.column_stack([indices[valid], labels[valid], *told[0], *told[1]]))
        # Of all classes, where both tell them.
        whole = "topk" not in self._kinds
        one, other = (_probabilities(outputs[0], kind) for outputs, kind in zip(pair, self._kinds))
        apart = np.abs(one - other).max() if whole else np.abs(told[0][1] - told[1][1]).max()
        logits = np.abs(pair[0][0] - pair[1][0]).max() if self._kinds == ("logits", "logits") else 0.0
        self._apart = np.maximum(self._apart, [apart, logits, np.abs(pair[0][0]).max()])

    def lines(self, names: tuple[str, str]) -> Iterator[str]:
        """What was found, for people; ``names`` of both models."""
        from scipy.stats import binomtest  # which takes a second to import

        labels, first, second = self._columns[:, 1], self._columns[:, 2], self._columns[:, 4]
        count, hits = len(labels), [first == labels, second == labels]
        for name, hit in zip(names, hits):
            yield f"{name}: top-1 {100 * hit.mean():.3f} % ({hit.sum()}/{count})"
        same = int((first == second).sum())
        alone = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
        neither = count - same - sum(alone)
        yield f"the same prediction for {same} of {count} images ({100 * same / count:.3f} %)"
        yield f"right: {alone[0]} by the first alone, {alone[1]} by the second alone; {neither} wrong in different ways"
        # McNemar's test in its exact form: under no difference, either model is as often the only one that is right.
        p = float(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0
        verdict = "chance alone may well do that" if p > _LIKELY else "chance alone would hardly do that"
        verdict = verdict if sum(alone) else "neither is right where the other is not"
        yield f"McNemar's exact p = {p:.4g}: {verdict}"
        of = "probabilities" if "topk" not in self._kinds else "probabilities of the predictions"
        text = f"{of} differ by at most {self._apart[0]:.2e}"
        if self._kinds == ("logits", "logits"):
            text += f", logits by {self._apart[1] / self._apart[2]:.1e} of the largest"
        yield text

    def table(self) -> Iterator[Sequence[object]]:
        """Of the images with another prediction: a head, then a row each."""
        models = ("first", "second")
        yield ["file", "true", *(f"{model}_{what}" for model in models for what in ("label", "probability")), "right"]
        for index, true, first, sure, second, surer in self._columns.tolist():
            if first != second:
                right = {first: "first", second: "second"}.get(true, "neither")
                told = (self._name(first), f"{sure:.6g}", self._name(second), f"{surer:.6g}")
                yield [shown(self._source.name(int(index))), self._name(true), *told, right]

    @property
    def _columns(self) -> np.ndarray:
        """Index, true class, and class and probability of both, an image a row."""
        return np.concatenate(self._rows)

    def _name(self, index: float) -> str:
        return "" if index < 0 else self._label(int(index))


def _best(outputs: Sequence[np.ndarray], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The first class (N,) and its probability (N,); -1 where the numbers are not finite."""
    classes, probabilities = (column[:, 0] for column in most_probable(outputs, kind, 1))
    finite = np.isfinite(outputs[0]).all(axis=1)
    return np.where(finite, classes, -1), probabilities


def _probabilities(output: np.ndarray, kind: str) -> np.ndarray:
    return softmax(output.astype(np.float64)) if kind == "logits" else output.astype(np.float64)
