"""What compiled steps depend on beside their shapes: their code, PyTorch, the C library, the processor. Without torch."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCES = tuple(f"models/{name}.py" for name in ("llama", "loss", "shape")) + tuple(
    f"harness/{name}.py" for name in ("aot", "flat", "onednn", "optimizer", "step")
)
KEPT_SECONDS = 30 * 86400.0  # how long a compiled step is kept that nobody uses


@cache
def build() -> str:
    """One name for all of that: code compiled under another is not used."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for name in SOURCES:
        digest.update((root / name).read_bytes())
    told = (*platform.libc_ver(), platform.machine(), os.environ.get("ATEN_CPU_CAPABILITY"), _instructions())
    digest.update(repr(told).encode())
    return f"{torch}-{digest.hexdigest()[:16]}"


def _instructions() -> str:
    """What the processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))), "")
