"""Training can be read down: from the command line to the optimizer's step it is five calls."""

import pytest

from beit3_vqa.cli.main import main
from tests.helpers.calls import calls_of_each_step
from tests.helpers.commands import finetune


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--update_freq", "2", "--clip_grad", "1", "--model_ema", "--save_steps", "1"],
        ["--precision", "fp16"],  # whose steps the gradient scaler takes
    ],
)
def test_five_calls_from_the_command_line_to_the_step(scpc, tmp_path, flags):
    with calls_of_each_step() as calls:
        assert main(finetune(scpc, tmp_path / "out", "--epochs", "1", *flags)) == 0
    assert len(calls) > 1
    five = ["cli.main.main", "cli.finetune.run", "engine.api.train", "engine.trainer.fit", "engine.loop.train_epoch"]
    assert all(names == five for names in calls)
