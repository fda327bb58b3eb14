"""The matrix-multiply peak of a device: what a step's FLOPs are set against, everywhere in this repository.

    rates(precision, device, seconds) -> {n: FLOP/s}      peak(...) -> the best of them

Square products (n, n) @ (n, n) count 2 n^3 FLOPs. On a CPU they run on `torch.get_num_threads()` threads, fp32 through
oneDNN or through PyTorch's own BLAS, whichever is faster; on a GPU with the settings that training has (no TF32).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

SIZES = (256, 512, 1024, 2048, 4096)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SPAN = 5e-3  # seconds of one timing, so many products on end: a clock and a launch cost microseconds


def peak(precision: str, device: str = "cpu", seconds: float = 3.0, sizes: tuple[int, ...] = SIZES) -> float:
    """FLOP/s of the best size; see `rates`."""
    return max(rates(precision, device, seconds, sizes).values())


@torch.inference_mode()
def rates(precision: str, device: str = "cpu", seconds: float = 3.0, sizes: tuple[int, ...] = SIZES) -> dict[int, float]:
    """Size -> FLOP/s, the fastest of its timings, which take turns for about `seconds`. The first size is always there;
    of the others those of which one timing fits into what is left."""
    end, ways, fastest = time.perf_counter() + seconds, [], {}

    def fits(n: int, times: int) -> bool:
        return 2 * n**3 * times / max(fastest.values()) < end - time.perf_counter()

    def time_it(n: int, way: Callable[[], torch.Tensor]) -> None:
        fastest[n] = max(fastest.get(n, 0.0), _rate(way, n, device))

    for n in sorted(sizes):
        found = _ways(n, precision, device)
        if fastest and not fits(n, 2 * len(found)):  # to warm up, and once for the figure
            break
        for way in found:
            way()
            time_it(n, way)
            ways.append((n, way))
    while fits(min(fastest), 1):
        for n, way in ways:
            if fits(n, 1):
                time_it(n, way)
    return fastest


def _ways(n: int, precision: str, device: str) -> list[Callable[[], torch.Tensor]]:
    """Products of two random matrices, ready to be called."""
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    if precision == "fp32" and device == "cpu" and torch.backends.mkldnn.is_available():
        x, y = a.to_mkldnn(), b.to_mkldnn()
        return [lambda: a @ b, lambda: F.linear(x, y)]
    a, b = a.to(DTYPES[precision]), b.to(DTYPES[precision])
    return [lambda: a @ b]


def _rate(way: Callable[[], torch.Tensor], n: int, device: str) -> float:
    """FLOP/s of products on end for at least SPAN seconds, or of one."""
    once = _seconds(way, 1, device)
    times = max(1, min(10_000, round(SPAN / max(once, 1e-7))))
    return 2 * n**3 * times / (_seconds(way, times, device) if times > 1 else once)


def _seconds(way: Callable[[], torch.Tensor], times: int, device: str) -> float:
    wait(device)
    begun = time.perf_counter()
    for _ in range(times):
        way()
    wait(device)
    return time.perf_counter() - begun


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)
