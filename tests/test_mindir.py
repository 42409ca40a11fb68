import os

import mindspore as ms
import numpy as np
import pytest

from mindcv_reparam import create_model, reparameterize
from mindcv_reparam.deploy import compare
from mindcv_reparam.deploy.mindir import export_mindir
from mindcv_reparam.errors import UserError


@pytest.fixture(scope="module")
def net():
    return reparameterize(create_model("visformer_tiny", num_classes=10, img_size=32))


@pytest.mark.parametrize("batch", [2, None])
def test_the_file_computes_what_the_network_does(net, tmp_path, batch):
    path = tmp_path / "net.mindir"
    assert export_mindir(net, path, (batch, 3, 32, 32)) <= 2e-5
    assert os.listdir(tmp_path) == ["net.mindir"]
    images = ms.Tensor(np.random.default_rng(1).normal(size=(batch or 5, 3, 32, 32)), ms.float32)
    exported = ms.nn.GraphCell(ms.load(str(path)))
    np.testing.assert_allclose(exported(images).asnumpy(), net(images).asnumpy(), atol=1e-5)


def test_a_file_that_differs_is_not_kept(net, tmp_path, monkeypatch):
    other = reparameterize(create_model("visformer_tiny", num_classes=10, img_size=32))
    load = ms.load
    other_path = tmp_path / "other.mindir"
    export_mindir(other, other_path, (1, 3, 32, 32))
    monkeypatch.setattr(ms, "load", lambda path: load(str(other_path)))
    with pytest.raises(UserError, match="was not kept: its output differs"):
        export_mindir(net, tmp_path / "net.mindir", (1, 3, 32, 32))
    assert os.listdir(tmp_path) == ["other.mindir"]


def test_a_batch_that_gives_nan_is_noticed_whichever_it_is(net, tmp_path, monkeypatch):
    differences = iter([0.0, float("nan")])
    monkeypatch.setattr(compare, "difference", lambda *_: next(differences))
    with pytest.raises(UserError, match="was not kept: its output differs"):
        export_mindir(net, tmp_path / "net.mindir", (None, 3, 32, 32))
    assert not list(tmp_path.iterdir())
