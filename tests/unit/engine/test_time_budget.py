"""--max_hours: what is measured, when the clock is looked at, and what is planned."""

import pytest

from beit3_vqa.engine import time_budget
from beit3_vqa.engine.time_budget import TimeBudget, Work

WORK = Work(epochs=10, steps=100, validations=1, saves=1, validation_in_steps=20)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is told to go on."""

    class Clock:
        seconds = 1000.0

        def go(self, seconds):
            self.seconds += seconds

    clock = Clock()
    monkeypatch.setattr(time_budget, "now", lambda: clock.seconds)
    return clock


def trained(budget, clock, steps, each, first=None):
    """Take steps; return those after which it was time to look."""
    looks = []
    for number in range(steps):
        clock.go(first if first is not None and number < time_budget.WARM_UP else each)
        looks += [budget.steps] if budget.count_step() else []
    return looks


def test_the_clock_is_looked_at_ever_more_rarely(clock):
    assert trained(TimeBudget(1.0), clock, 1100, 1) == [16, 64, 256, 1024]


def test_slow_first_steps_validations_and_saves_are_not_taken_for_steps(clock):
    budget = TimeBudget(1.0)
    trained(budget, clock, 10, 2.0, first=50)
    for what, seconds in (("validation", 30), ("save", 7), ("save", 3)):
        with budget.timing(what):
            clock.go(seconds)
    trained(budget, clock, 6, 2.0)
    budget.measure()
    assert (budget.kept.step, budget.kept.validation, budget.kept.save) == (2.0, 30, 7)
    trained(budget, clock, 11, 4.0)
    budget.measure()  # too few steps since the last time
    assert budget.kept.step == 2.0
    trained(budget, clock, 5, 4.0)
    budget.measure()
    assert budget.kept.step == 4.0


@pytest.mark.parametrize(
    ("step_seconds", "validation", "save"), [(2.0, 30.0, 7.0), (0.1, 0.0, 50.0), (9.0, 100.0, 0.0)]
)
def test_a_plan_uses_the_time_and_no_more(clock, step_seconds, validation, save):
    work = Work(epochs=10**6, steps=100, validations=2, saves=3, validation_in_steps=20)
    budget = TimeBudget(2.5)
    clock.go(1000)
    budget.kept.step, budget.kept.validation, budget.kept.save = step_seconds, validation, save
    steps = budget.plan(40, work) - 40
    validation = validation or 20 * step_seconds  # not measured: as long as the same examples take in training
    seconds = 1000 + steps * (step_seconds + (2 * validation + 3 * save) / 100) + validation + 2 * save
    assert 0.95 * 9000 < seconds <= 9000


def test_a_plan_ends_with_the_last_epoch_or_at_once(clock):
    budget = TimeBudget(1.0)
    budget.kept.step = 0.01
    assert budget.plan(40, WORK) == 1000
    clock.go(3601)
    assert budget.plan(40, WORK) == 40
    assert budget.no_time_left


def test_a_plan_is_kept_unless_it_is_off_by_a_twentieth(clock, capsys):
    budget = TimeBudget(1.0)
    assert not budget.plan_anew(16, WORK)  # nothing is measured
    budget.kept.step, budget.kept.validation = 6.0, 60.0
    assert budget.plan_anew(16, WORK)
    planned = budget.kept.last_step
    assert 500 < planned < 550
    said = capsys.readouterr().out
    assert f"{planned / 100:.2f} of 10 epochs, at step {planned}, and the learning rate comes to its end there" in said
    for seconds, anew in ((6.2, False), (5.8, False), (7.0, True), (5.0, True), (0.5, True)):
        budget.kept.step = seconds
        assert budget.plan_anew(16, WORK) is anew
    assert budget.kept.last_step == 0
    assert "there is time for all 10 epochs" in capsys.readouterr().out


def test_time_is_counted_over_sessions(clock):
    first = TimeBudget(1.0)
    clock.go(100)
    first.kept.step = 6.0
    first.plan_anew(16, WORK)
    state = first.state()
    clock.go(5000)  # nobody trains meanwhile
    second = TimeBudget(1.0)
    second.restore(state, 100)
    clock.go(10)
    assert second.used == 110
    assert second.kept.last_step == first.kept.last_step
    other = TimeBudget(2.0)
    other.restore(state, 50)  # steps of another size
    assert (other.kept.last_step, other.kept.step, other.used) == (0, 0.0, 100)
    longer = TimeBudget(2.0)
    longer.restore(state, 100)
    assert longer.plan_anew(16, WORK)
    assert longer.kept.last_step > first.kept.last_step + 450
