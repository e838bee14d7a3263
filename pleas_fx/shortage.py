"""Errors that say nothing of the input: memory, or room for temporary files, ran out."""

from __future__ import annotations

import errno
import tempfile

import torch

REFUSED = "DefaultCPUAllocator"  # torch, in a plain RuntimeError; what follows differs by system


def shortage(error: BaseException) -> str | None:
    """What there was too little of, and what to do; None for any other error."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no room left for temporary files in {tempfile.gettempdir()}"
    out_of_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    if out_of_memory or (isinstance(error, RuntimeError) and REFUSED in str(error)):
        return "needs more memory than there is; fewer or smaller calibration inputs need less"
    return None
