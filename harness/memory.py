"""Whether an error is a lack of memory."""

from __future__ import annotations

import torch


def no_memory(error: BaseException) -> bool:
    """Whether a tensor, or what Python needs beside it, found no room. PyTorch has a type for that on a GPU only."""
    said = ("DefaultCPUAllocator: ", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in said)
