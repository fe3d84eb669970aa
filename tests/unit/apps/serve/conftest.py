"""Models to serve."""

import pytest

from beit3_vqa.apps.serve.ensemble import Ensemble
from beit3_vqa.cli.main import main
from beit3_vqa.engine.predictor import load
from tests.helpers.commands import finetune_clip
from tests.helpers.serve_client import running


@pytest.fixture(scope="session")
def ensemble(trained) -> Ensemble:
    """A BEiT-3 that chooses among four options."""
    return Ensemble([load(trained / "checkpoint-best.pth", "cpu", precision="fp32")])


@pytest.fixture(scope="session")
def clip_checkpoint(scpc, clip_folder, tmp_path_factory):
    """A CLIP with adapters."""
    out = tmp_path_factory.mktemp("served_clip")
    assert main(finetune_clip(scpc, clip_folder, out, "--epochs", "1", "--save_ckpt_freq", "5")) == 0
    return out / "checkpoint-best.pth"


@pytest.fixture(scope="session")
def clip(clip_checkpoint):
    """The same, loaded."""
    return load(clip_checkpoint, "cpu", precision="fp32")


@pytest.fixture(scope="session")
def url(ensemble):
    """Where the ensemble is served."""
    with running(ensemble) as address:
        yield address


@pytest.fixture(scope="session")
def photograph(scpc):
    """A cat."""
    return scpc / "images" / "0_chelsea.jpg"
