"""Tuning for the CPU: the library that multiplies (oneDNN or MKL), the allocator, and the imports.
"""

import ctypes
import inspect
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# By default oneDNN keeps what it prepared for 1024 shapes of matrix, hundreds of MB here.  A run of
# PPO meets about 500; with fewer kept, some would be prepared again and again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")

ALLOWED, NOT_ALLOWED = "bf16", "ieee"  # may a float32 product be made of bfloat16 ones?


def has_instructions(*names: str) -> bool:
    """Whether this CPU has one of these, as torch.cpu names them; older versions do not say."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in names)


@contextmanager
def switched(switch: Any, precision: str) -> Iterator[None]:
    """Set one of torch's switches of how float32 matrices are multiplied, and set it back."""
    before = switch.fp32_precision
    switch.fp32_precision = precision
    try:
        yield
    finally:
        switch.fp32_precision = before


@contextmanager
def onednn_matmul(enabled: bool = True) -> Iterator[None]:
    """Let oneDNN compute float32 matrix products; MKL uses half the vector width of AMD's CPUs.

    PyTorch hands a product to oneDNN only where bfloat16 is allowed inside it.  oneDNN makes use of
    that on CPUs with AMX, where MKL is fast anyway; so only CPUs with AVX-512 and no AMX get the
    permission, and float32 means float32.  For products so small that oneDNN's start-up outweighs
    them, enabled=False chooses MKL.  The switch belongs to the process: two threads must not
    disagree.
    """
    if has_instructions("avx512_f") and not has_instructions("amx_tile"):
        with switched(torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
                      ALLOWED if enabled else NOT_ALLOWED):
            yield
    else:
        yield


@contextmanager
def tf32_matmul(enabled: bool) -> Iterator[None]:
    """Let a GPU round what it multiplies in float32 to 10 bits of mantissa: five times as fast.

    For what a bfloat16 run (7 bits) keeps in float32: the heads, and PPO's sampling.  Sums stay in
    float32.  The switch belongs to the process: two threads must not disagree.
    """
    if enabled:
        with switched(torch.backends.cuda.matmul, "tf32"):
            yield
    else:
        yield


def keep_freed_memory() -> None:
    """Let the allocator keep freed memory: what one step frees, the next one takes again.

    glibc returns large blocks to the system, which clears them page by page when they are taken
    anew: a third of the time of a step.  Blocks over 32 MB, the most that can be set, still go.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # numbers of malloc.h
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Give back what `keep_freed_memory` kept, where the next work wants blocks of other sizes."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class AdamW(torch.optim.AdamW):
    """torch's, without the compiler (70 MB, and a second) that it would import.

    torch wraps these methods so that compiled code leaves them out, and the wrappers import it.
    Nothing here is compiled.  The option `differentiable` has no effect.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def fast_precision(device: torch.device) -> str:
    """bfloat16 where its matrix products are several times faster than float32's, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and has_instructions("avx512_bf16", "amx_bf16")
    return "bfloat16" if fast else "float32"


def size_step(size: int, sizes: int = 8) -> int:
    """Sizes are rounded up to a multiple of this: `sizes` (a power of two) different ones from one
    power of two to the next.

    oneDNN keeps half a MB for every shape of matrix that it has met, and never frees half of that.
    """
    return 2 ** max(0, size.bit_length() - sizes.bit_length())


def most_tokens(device: torch.device) -> int:
    """How many tokens to put into one backward pass: on a CPU more only take more memory."""
    return 3072 if device.type == "cpu" else sys.maxsize
