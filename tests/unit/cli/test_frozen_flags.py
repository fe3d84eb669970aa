"""What people have typed since version 0.1.0 goes on meaning the same."""

from pathlib import Path

from tests.golden.flags import flags

FROZEN = Path(__file__).parents[2] / "golden" / "flags_0.1.0.txt"


def test_no_flag_of_0_1_0_is_lost_or_takes_or_defaults_to_something_else():
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    assert len(frozen) > 400
    assert sorted(set(frozen) - set(flags())) == []
