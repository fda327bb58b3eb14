"""What tests of every kind need: to wait, and to do without what this machine has not."""

import os
import time


def wait_for(condition, seconds=60.0, every=0.02):
    """What `condition` returns once that is true; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {getattr(condition, '__name__', condition)}"
        time.sleep(every)
    return found


def unavailable(reason):
    """Skip what this machine cannot do; under CI=true that is a failure."""
    import pytest  # not by those who only wait: benchmarks/soak.py

    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(reason))
