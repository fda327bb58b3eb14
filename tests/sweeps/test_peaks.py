"""Peaks of matrix products are measured, kept per device and precision, and survive damaged lines."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from harness import gemm
from harness.gemm import rates
from sweeps.peaks import FILE, known_peak, record_peak
from sweeps.rate import device_name, measured_rates


def test_the_highest_record_of_a_device_and_precision_is_its_peak(tmp_path):
    assert known_peak(tmp_path, "one", "bf16") is None
    for flops in (2e11, 3e11, 1e11):
        record_peak(tmp_path, "one", "bf16", flops)
    record_peak(tmp_path, "one", "fp32", 7e11)
    record_peak(tmp_path, "other", "bf16", 8e11)
    with open(tmp_path / FILE, "a") as f:
        f.write('{"device": "one", "precision": "bf16", "flops_per_second": "9e11"}\n{"half\n')
        f.write('{"device": "one", "precision": "bf16", "flops_per_second": -1}\n[]\n')
    assert known_peak(tmp_path, "one", "bf16") == 3e11


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    record_peak(tmp_path / "file", "one", "bf16", 1e11)
    (tmp_path / "taken").write_text("")
    record_peak(tmp_path / "taken", "one", "bf16", 1e11)
    assert known_peak(tmp_path / "taken", "one", "bf16") is None


def test_a_probe_tells_rate_and_peak_of_this_machine(tmp_path):
    assert measured_rates(tmp_path, "cpu", "fp32").eager.source == "a probe just made or kept"
    assert 1e8 < known_peak(tmp_path, device_name("cpu"), "fp32") < 1e14
    assert known_peak(tmp_path, device_name("cpu"), "bf16") is None


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_larger_sizes_are_timed_as_long_as_the_time_lasts(precision, monkeypatch):
    """By a clock that each look moves on by a millisecond, whatever a product takes here."""
    ticks = itertools.count()
    monkeypatch.setattr(gemm, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 1000))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert list(rates(precision, seconds=0.0, sizes=(64, 4096))) == [64]
        found = rates(precision, seconds=0.5, sizes=(64, 96))
    finally:
        torch.set_num_threads(threads)
    assert list(found) == [64, 96] and all(1e7 < rate < 1e14 for rate in found.values())
