"""What a training step on a CPU owes to two libraries below PyTorch: the one that multiplies, the one that keeps memory."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# oneDNN keeps what it prepared for up to 1024 shapes of matrix, hundreds of MB here.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

PERMITTED, NOT_PERMITTED = "bf16", "ieee"  # may a float32 product be made of bfloat16 ones?


def offers(*abilities: str) -> bool:
    """Whether this machine's processor has one of these, as torch.cpu names them; older torch does not say."""
    offered = getattr(torch.cpu, "get_capabilities", dict)()
    return any(offered.get(ability, False) for ability in abilities)


@contextmanager
def onednn_multiplies(yes: bool = True) -> Iterator[None]:
    """Hand the CPU's float32 products to oneDNN, twice as fast on AMD's processors as MKL, which uses half of their width.

    PyTorch does that only where bfloat16 inside a product is permitted.  oneDNN makes use of the permission on
    processors with AMX, and there MKL is fast too: only others get it, so that float32 means float32.  For products so
    small that oneDNN's run-up outweighs them (`yes` is false) MKL is better.  The switch is one for the whole process,
    and so not for two threads at a time.
    """
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    if offers("avx512_f") and not offers("amx_tile"):
        switch.fp32_precision = PERMITTED if yes else NOT_PERMITTED
    try:
        yield
    finally:
        switch.fp32_precision = before


def keep_freed_memory() -> None:
    """Let the C library keep the memory that is freed: a step frees what the next one takes again.

    glibc hands large blocks back to the system, which clears them page by page when they are taken anew: a third of the
    time of a step.  Blocks of more than 32 MB, the most that it can be told, still go back: keys and values, say.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # as malloc.h numbers them
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**31 - 1)


def fast_precision(device: torch.device) -> str:
    """bfloat16 where matrix products in it are several times faster than in float32, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and offers("avx512_bf16", "amx_bf16")
    return "bfloat16" if fast else "float32"


def step_between_sizes(size: int) -> int:
    """Between this size and the next that is worth having: eight of them from each power of two to the next.  oneDNN keeps
    half a MB for every shape of matrix that it met, a quarter of one for good."""
    return 2 ** max(0, size.bit_length() - 4)


def most_tokens(device: torch.device) -> int:
    """How many tokens are worth having in one backward pass: on a CPU more of them are no faster, and take memory."""
    return 4096 if device.type == "cpu" else sys.maxsize
