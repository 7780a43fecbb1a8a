import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from minigpt import generate, processor
from sft import sft_train


@pytest.fixture
def switch():
    """torch's switch of how float32 matrices are multiplied, put back after the test."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    yield settings
    settings.fp32_precision = before


def test_products_are_exact_to_float32_inside_the_block(switch):
    """Whatever library multiplies: forward, gradients, and batches of matrices."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((300, 128), (64, 128)))
    up, q = torch.randn(300, 64, generator=generator), torch.randn(6, 40, 32, generator=generator)
    exact = F.linear(x.double(), w.double())
    with processor.onednn_multiplies():
        found = F.linear(x, w)
        gradients, scores = torch.autograd.grad(found, (x, w), up), q @ q.mT
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)  # in bfloat16 0.1 is usual
    torch.testing.assert_close(scores.double(), q.double() @ q.double().mT, rtol=0, atol=1e-4)
    for a, b in zip(gradients, torch.autograd.grad(exact, (x, w), up.double()), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("abilities", "permitted"), [
    ({"avx512_f": True, "amx_tile": False}, True), ({"avx512_f": True, "amx_tile": True}, False),
    ({"avx2": True}, False), ({}, False)])
def test_only_processors_that_make_no_use_of_the_permission_get_it(monkeypatch, switch, abilities, permitted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    switch.fp32_precision = processor.NOT_PERMITTED
    with processor.onednn_multiplies():
        assert (switch.fp32_precision == processor.PERMITTED) == permitted
        with processor.onednn_multiplies(False):
            assert switch.fp32_precision == processor.NOT_PERMITTED
        assert (switch.fp32_precision == processor.PERMITTED) == permitted
    assert switch.fp32_precision == processor.NOT_PERMITTED


def test_the_switch_is_as_it_was_after_training_sampling_and_errors(switch, make_model):
    before = switch.fp32_precision
    model, _ = sft_train(make_model(), [{"prompt": "a", "response": "b"}], 1)
    generate(model, ["a"], 4)
    with pytest.raises(RuntimeError), processor.onednn_multiplies():
        raise RuntimeError
    assert switch.fp32_precision == before
    assert torch.get_float32_matmul_precision() == "highest"  # an error, where torch finds its switches at odds


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_importing_starts_no_threads():
    """A process that forks afterwards, as multiprocessing and data loaders do, would hang in its first product."""
    script = ("import os, signal, torch, minigpt, ppo.main, dpo.main; child = os.fork();\n"
              "if child == 0: signal.alarm(30); torch.ones(500, 500) @ torch.ones(500, 500); os._exit(7)\n"
              "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "2"})


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_memory_that_was_freed_is_not_taken_from_the_system_again():
    """In a process of its own, since nothing undoes it.  A page fault is one page (4 kB) asked of the system."""
    script = ("import resource, torch; from minigpt.processor import keep_freed_memory; keep_freed_memory(); "
              "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; "
              "take = lambda: (faults(), torch.ones(5_000_000), faults()); take(); take(); take(); "
              "before, _, after = take(); print(after - before)")
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1_000  # 20 MB are 4,900 pages
