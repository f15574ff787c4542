import pytest

from utils.schedule import Steps, duration, learning_rate_factor, plan_steps


@pytest.mark.parametrize(
    ("num_rows", "batch", "epochs", "total"),
    [
        (100, 10, 1, 10),
        (101, 10, 1, 11),
        (1, 128, 1, 1),
        (100, 10, 2.5, 25),
        (100, 128, 0.1, 1),
        (52_000, 128, 3, 1221),
    ],
)
def test_every_size_and_number_of_epochs_has_steps(num_rows: int, batch: int, epochs: float, total: int) -> None:
    steps = plan_steps(num_rows, global_batch_size=batch, epochs=epochs)
    assert steps.total == total
    assert 0 <= steps.warmup < total
    assert all(1 <= every <= max(1, total) for every in (steps.logging, steps.saving, steps.evaluating))


def test_what_is_given_holds() -> None:
    steps = plan_steps(100, global_batch_size=10, epochs=1, max_steps=7, warmup=50, logging=3, saving=4, evaluating=5)
    assert steps == Steps(total=7, warmup=6, logging=3, saving=4, evaluating=5)
    assert plan_steps(100, global_batch_size=10, epochs=1, warmup=0).warmup == 0


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (10, 1), (10, 0), (100, 10), (7, 6)])
def test_the_rate_rises_to_the_peak_falls_and_is_never_zero_in_the_run(total: int, warmup: int) -> None:
    steps = Steps(total=total, warmup=warmup, logging=1, saving=1, evaluating=1)
    factors = [learning_rate_factor(step, steps) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[warmup] == 1
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert learning_rate_factor(total, steps) == 0
    assert learning_rate_factor(total + 5, steps) == 0


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
