"""What people have typed since version 0.1.0 goes on meaning the same."""

from pathlib import Path

import pytest

from beit3_vqa.config.config import read_config_values
from beit3_vqa.errors import InputError
from tests.golden.flags import flags

FROZEN = Path(__file__).parents[1] / "golden" / "flags_0.1.0.txt"


def test_flags_of_0_1_0_keep_their_values_and_defaults():
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    assert len(frozen) > 400
    now = flags()
    # A flag that was required may become optional: whatever people typed has it.
    optional_now = {f"{line}, required" for line in now if not line.endswith(", required")}
    # One that took a value may take several, if its command has no arguments without a flag that it could swallow.
    with_arguments = {line.split()[0] for line in now if not line.split()[1].startswith("-")}
    several_now = {line[: -len("many")] + "1" for line in now if line.endswith(" takes many")}
    several_now = {line for line in several_now if line.split()[0] not in with_arguments}
    assert sorted(set(frozen) - set(now) - optional_now - several_now) == []


@pytest.mark.parametrize(("written", "means"), [("0", "auto"), ('"auto"', "auto"), ("48", 48)])
def test_a_config_of_0_1_0_means_the_same_batch_size(tmp_path, written, means):
    for content in (f'{{"batch_size": {written}}}', f'{{"optim": {{"batch_size": {written}}}}}'):
        (tmp_path / "config.json").write_text(content)
        assert read_config_values(tmp_path / "config.json") == {"batch_size": means}


@pytest.mark.parametrize("written", ["false", "0.0", "null", '"some"'])
def test_values_that_were_no_batch_size_in_0_1_0_are_refused(tmp_path, written):
    (tmp_path / "config.json").write_text(f'{{"batch_size": {written}}}')
    with pytest.raises(InputError, match="batch_size can't be"):
        read_config_values(tmp_path / "config.json")
