import numpy as np
import pytest

from harness.point import ScheduleSpec
from harness.schedule import shares

STEPS = 1000


def spec(name, warmup=100, cooldown=0, shape="", ratio=0.0):
    return ScheduleSpec(name, warmup, cooldown, shape, ratio)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd", "constant"])
def test_warmup_rises_linearly_to_the_peak(name):
    s = shares(spec(name, cooldown=200, shape="linear"), STEPS)
    np.testing.assert_allclose(s[:100], np.arange(1, 101) / 100)
    assert s.max() == 1 and (s > 0).all()


def test_values_by_hand():
    assert shares(spec("linear"), STEPS)[550] == pytest.approx(0.5)
    assert shares(spec("linear", ratio=0.1), STEPS)[550] == pytest.approx(0.55)
    assert shares(spec("cosine", ratio=0.1), STEPS)[550] == pytest.approx(0.55)
    assert shares(spec("cosine", ratio=0.1), STEPS)[325] == pytest.approx(0.1 + 0.9 * (1 + 2**-0.5) / 2)
    wsd = shares(spec("wsd", cooldown=200, shape="linear"), STEPS)
    assert wsd[800] == 1 and wsd[900] == pytest.approx(0.5)
    assert shares(spec("wsd", cooldown=200, shape="1-sqrt"), STEPS)[850] == pytest.approx(0.5)
    assert (shares(spec("constant"), STEPS)[100:] == 1).all()


def test_no_warmup_begins_at_the_peak():
    assert shares(spec("linear", warmup=0), STEPS)[0] == 1
