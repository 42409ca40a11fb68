"""The table of memory of the comparison with peers, from processes that are never started."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_peaks_are_compared_with_and_without_the_frameworks():
    from compare import compared
    from peers import Contender

    def peaks(*sizes: float) -> list[Contender]:
        return [Contender("", "", "", {}, peak=size) for size in sizes]

    assert compared(peaks(900.0, 600.0)) == ["900", "600", "1.50"]
    assert compared(peaks(900.0, 600.0), peaks(400.0, 350.0)) == ["500", "250", "2.00"]


def test_growth_is_what_the_steps_after_the_hundredth_add():
    from compare import growth_of
    from peers import Contender

    class Growing(Contender):
        def __enter__(self) -> Contender:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def turn(self) -> None:  # of two calls
            self.peak += 2.0 if len(self.seconds) < 50 else 1.0
            self.seconds.append(0.0)

    assert growth_of(Growing("", "", "", {}), steps=120) == 10.0


def test_a_contender_is_compared_with_pytorch_and_a_file_with_a_file():
    from compare import rows
    from peers import Case, Contender

    def timed(name: str, *seconds: float) -> Contender:
        return Contender(name, "", "", {}, first=2.0, seconds=list(seconds), processor=[0.1] * len(seconds))

    contenders = [
        timed("ours", 0.01, 0.02, 0.06),
        timed("PyTorch", 0.02, 0.05, 0.06),
        timed("ours, ONNX", 0.01, 0.01, 0.01),
        timed("PyTorch, ONNX", 0.01, 0.02, 0.05),
    ]
    assert rows(Case("visformer_tiny", 8, threads=1), contenders) == [
        ["visformer_tiny", "8", "ours", "2.0", "20", "100", "PyTorch", "0.50", "1.00"],
        ["visformer_tiny", "8", "PyTorch", "2.0", "50", "100", "", "", ""],
        ["visformer_tiny", "8", "ours, ONNX", "2.0", "10", "100", "PyTorch, ONNX", "0.50", "1.00"],
        ["visformer_tiny", "8", "PyTorch, ONNX", "2.0", "20", "100", "PyTorch", "0.50", "1.00"],
    ]


def test_everyone_computes_the_same_case(monkeypatch):
    import compare
    import peers

    monkeypatch.setattr(peers, "environment", lambda name, *how, **more: name)
    size = {"batch": 8, "threads": 1, "form": "step"}
    found = compare.sides("step", peers.Case("visformer_tiny", 8, threads=1), checkout="")
    assert [(one.python, one.script) for one in found[1:]] == [
        ("peers", "timm_network.py"),
        ("mindcv", "mindcv_network.py"),
    ]
    for one in found:
        assert one.settings.items() >= (size | {"model": "visformer_tiny", "size": 224}).items()
    assert found[0].settings["hparams"] == {"gelu": "exact"}  # as timm's
    ours, torch = compare.sides("step", peers.Case("riformer_s12", 8, threads=1, drop_rate=0.1), checkout="")
    assert torch.settings.items() >= (size | {"model": "poolformer_s12", "drop_rate": 0.1}).items()
    assert ours.settings.items() >= (size | {"model": "riformer_s12", "hparams": {"drop_rate": 0.1}}).items()


def test_our_step_is_that_of_the_task(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "contenders"))
    from ours import train_step

    from mindcv_reparam import create_model

    net = create_model("riformer_s12", num_classes=1000, img_size=32)
    step, targets = train_step(net, "riformer_s12", batch=2)
    assert type(step.objective).__name__ == "ClassificationObjective"
    assert targets.asnumpy().tolist() == [0, 1]
    assert {parameter.name for parameter in net.trainable_params()} <= {one.name for one in step.get_parameters()}


def test_detectors_share_their_weights(monkeypatch, tmp_path):
    import compare
    import peers

    commands, written = [], []
    monkeypatch.setattr(peers, "environment", lambda name, *how, **more: name)
    monkeypatch.setattr(peers, "run_once", lambda contender: written.append(contender.settings))
    monkeypatch.setattr("mindcv_reparam.__main__.main", commands.append)
    case = peers.shared_weights(peers.Case("rtdetr_r18vd", 1, threads=1, size=320), tmp_path)
    assert [(one["form"], one["size"], one["weights"]) for one in written] == [("weights", 320, str(tmp_path))]
    assert commands == [
        ["convert", f"{tmp_path}/model.safetensors", "-o", f"{tmp_path}/ours.ckpt", "--img_size", "320"]
    ]
    ours, torch = compare.sides("inference", case, checkout="")
    assert (torch.python, torch.script) == ("transformers", "transformers_network.py")
    assert ours.settings["weights"] == torch.settings["weights"] == str(tmp_path)
    classifier = peers.Case("riformer_s12", 1, threads=1)
    assert peers.shared_weights(classifier, tmp_path) is classifier
