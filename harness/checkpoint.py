"""Checkpoints: one safetensors file each, sealed by a digest, written whole, refused when damaged.

`checkpoints/step-000000123.safetensors` holds every tensor of the state (weights, m, v, the log of all steps so far,
validation losses) and, as metadata, the step, the numerics the run began with, and the seconds spent.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

FOLDER = "checkpoints"
KEEP = 2  # a damaged newest one falls back to the one before


def write_checkpoint(run, step: int, tensors: dict[str, torch.Tensor], facts: dict) -> Path:
    """Write the state after `step` steps through `run` (a RunDirectory) and drop all but the newest `KEEP`."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps({**facts, "step": step}, sort_keys=True)
    name = f"{FOLDER}/step-{step:09d}.safetensors"
    run.write(name, save(tensors, {"facts": text, "digest": _digest(tensors, text)}))
    for old in checkpoints(run.path)[:-KEEP]:
        old.unlink(missing_ok=True)
    return run.path / name


def read_checkpoint(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict, list[str]] | None:
    """(tensors, facts, names of damaged files passed over) of the newest whole checkpoint, or None."""
    damaged = []
    for path in reversed(checkpoints(run_dir)):
        state = _read(path)
        if state is not None:
            return *state, damaged
        damaged.append(path.name)
    return None


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoint files, oldest first."""
    found = (Path(run_dir) / FOLDER).glob("step-*.safetensors")
    return sorted(path for path in found if path.is_file() and not path.is_symlink())  # no pipe is waited for


def drop_checkpoints(run_dir: Path) -> None:
    """Remove all of a finished run's checkpoints."""
    for path in checkpoints(run_dir):
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict] | None:
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}
        text = metadata["facts"]
        return (tensors, json.loads(text)) if metadata["digest"] == _digest(tensors, text) else None
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):  # a RecursionError is one of these
        return None


def _digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    """BLAKE2b-256 over names, dtypes, shapes, bytes and the facts: any truncated or flipped bit changes it."""
    digest = hashlib.blake2b(text.encode(), digest_size=32)
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"\n{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy() if t.numel() else b"")
    return digest.hexdigest()
