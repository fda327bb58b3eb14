"""Compiled code of the CPU's steps on disk: a shared library per step and shape, compiled once per machine, loaded by any
process in milliseconds.

PyTorch's AOTInductor compiles what `make_fx` traced; the library needs neither tracing nor a compiler when it is used, and
its wrapper is C++. Against `torch.compile` of the same step, at width 64 and 512 tokens: 15 % less time a step, and the
first step of a process after 0.02 s instead of 3-7.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.build import KEPT_SECONDS, build
from harness.memory import no_memory
from harness.onednn import through_onednn
from harness.private import keep_compiled_code, private_folder

FOLDER = "steps"
LEFT_SECONDS = 3600.0  # more than any compilation takes
KEPT = 1000  # libraries of 1-2 MB, at most
TRIES = 2  # of a library


class CompiledCodeError(RuntimeError):
    """A compiled step cannot be had here; one line that says why. No step was taken: its arguments are as they were."""


def load(function: Callable, name: str, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """`function` of tensors shaped as `example`, compiled; `name` says all else that is built into it.

    It may change its arguments in place, and returns one tensor. At the first call it is found in the private folder of
    compiled code, else compiled into it; two processes that compile the same at once do it twice, and the last one's file
    stays. Raises CompiledCodeError at a call where it cannot be had.
    """
    keep_compiled_code()
    folder = private_folder(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / FOLDER)
    shapes = [(tuple(t.shape), t.dtype) for t in example]
    built_in = (name, shapes, torch.get_num_threads(), build())
    return _Library(function, folder, hashlib.sha256(repr(built_in).encode()).hexdigest()[:24])


class _Library:
    """`function` as the library `key` in `folder`. One that cannot be loaded or fails at its first call (made under another
    C library, say) is deleted and compiled once more. Where that does not help, or nothing can be compiled, this process
    does not try again: every call raises CompiledCodeError."""

    def __init__(self, function: Callable, folder: Path, key: str):
        self.function, self.folder, self.key = function, folder, key
        self._run: Callable[[list[Tensor]], list[Tensor]] | None = None
        self._wrong: str | None = None  # why it cannot be had

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self._run(list(tensors))[0] if self._run else self._first(tensors)

    def _first(self, tensors: tuple[Tensor, ...]) -> Tensor:
        if self._wrong:
            raise CompiledCodeError(self._wrong)
        before, why = [t.clone() for t in tensors], ""
        for _ in range(TRIES):
            path = self._found() or self._compiled(before)
            try:
                run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
                found = run(list(tensors))[0]
            except RuntimeError as e:
                for tensor, old in zip(tensors, before, strict=True):  # of a step that broke off
                    tensor.copy_(old)
                if no_memory(e):
                    raise
                why = _line(e)
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                self._run = run
                return found
        self._wrong = f"a compiled step cannot be used: {why}"
        raise CompiledCodeError(self._wrong)

    def _compiled(self, example: list[Tensor]) -> Path:
        try:
            return _compile(self.function, tuple(example), self.folder, self.key)
        except Exception as e:  # compiler, disk, PyTorch: each has errors of its own
            if no_memory(e):
                raise
            self._wrong = f"a step cannot be compiled: {_line(e)}"
            raise CompiledCodeError(self._wrong) from e

    def _found(self) -> Path | None:
        """The library, if it is there and whole. It counts as used now."""
        for path in self.folder.glob(f"{self.key}-*.so"):
            with contextlib.suppress(OSError):  # just deleted
                if path == _sealed(self.folder, self.key, path):
                    os.utime(path)
                    return path
        return None


def _line(error: Exception) -> str:
    """What it says, in one line: of a compiler's output its first error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "error: " in line), lines[0])


def _sealed(folder: Path, key: str, path: Path) -> Path:
    """What the library at `path` is called if it is whole: its name ends with its digest, since loading a damaged one ends
    the process."""
    return folder / f"{key}-{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}.so"


def _compile(function: Callable, example: tuple[Tensor, ...], folder: Path, key: str) -> Path:
    from torch.fx.experimental.proxy_tensor import make_fx  # the compiler's imports take seconds

    _clean(folder)
    example = tuple(t.clone() for t in example)  # tracing runs the function, which writes into its arguments
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=folder) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        graph = through_onednn(make_fx(function)(*example))
        exported = torch.export.export(graph, example, strict=False).module()
        # Which vectors the processor has it says itself, and a compiler that takes PyTorch's headers knows them: trying each
        # out costs every new cache 10 s. Patterns of whole subgraphs take 2 s to load and find nothing that a step gains
        # from (time a step: 1.00 +- 0.02).
        options = {"aot_inductor.output_path": f"{scratch}/step.so", "cpp.vec_isa_ok": True, "pattern_matcher": False}
        # Precompiled headers would save a tenth of a compilation; they lie in /tmp, where another user may have put some.
        if hasattr(torch._inductor.config.aot_inductor, "precompile_headers"):
            options["aot_inductor.precompile_headers"] = False
        library = torch._inductor.aot_compile(exported, example, options=options)
        path = _sealed(folder, key, Path(library))
        os.replace(library, path)
    return path


def _clean(folder: Path) -> None:
    """Delete what processes that were killed have left, and libraries that nobody has used for long. A process that has one
    of them open keeps it."""
    now, used = time.time(), []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            age = now - path.stat().st_mtime
            if path.suffix == ".so":
                used.append((age, path))
            elif path.name.startswith("tmp") and age > LEFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    for i, (age, path) in enumerate(sorted(used)):
        if age > KEPT_SECONDS or i >= KEPT:
            with contextlib.suppress(OSError):
                path.unlink()
