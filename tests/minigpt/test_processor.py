import copy
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
    x, w = (torch.randn(*shape, generator=generator, requires_grad=True)
            for shape in ((300, 128), (64, 128)))
    up, q = (torch.randn(*shape, generator=generator) for shape in ((300, 64), (6, 40, 32)))
    exact = F.linear(x.double(), w.double())
    with processor.onednn_matmul():
        found = F.linear(x, w)
        gradients, scores = torch.autograd.grad(found, (x, w), up), q @ q.mT
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)  # in bfloat16 0.1 is usual
    torch.testing.assert_close(scores.double(), q.double() @ q.double().mT, rtol=0, atol=1e-4)
    for a, b in zip(gradients, torch.autograd.grad(exact, (x, w), up.double()), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("instructions", "allowed"), [
    ({"avx512_f": True, "amx_tile": False}, True), ({"avx512_f": True, "amx_tile": True}, False),
    ({"avx2": True}, False), ({}, False)])
def test_only_processors_that_make_no_use_of_the_permission_get_it(monkeypatch, switch,
                                                                   instructions, allowed):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    switch.fp32_precision = processor.NOT_ALLOWED
    with processor.onednn_matmul():
        assert (switch.fp32_precision == processor.ALLOWED) == allowed
        with processor.onednn_matmul(False):
            assert switch.fp32_precision == processor.NOT_ALLOWED
        assert (switch.fp32_precision == processor.ALLOWED) == allowed
    assert switch.fp32_precision == processor.NOT_ALLOWED


def test_the_switch_is_as_it_was_after_training_sampling_and_errors(switch, make_model):
    before = switch.fp32_precision
    model, _ = sft_train(make_model(), [{"prompt": "a", "response": "b"}], 1)
    generate(model, ["a"], 4)
    with pytest.raises(RuntimeError), processor.onednn_matmul():
        raise RuntimeError
    assert switch.fp32_precision == before
    # an error, where torch finds that its switches disagree
    assert torch.get_float32_matmul_precision() == "highest"


FORKING = """
import os, signal, torch
import minigpt, ppo.main, dpo.main

child = os.fork()
if child == 0:
    signal.alarm(30)
    torch.ones(500, 500) @ torch.ones(500, 500)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_importing_starts_no_threads():
    """A process that forks afterwards, as multiprocessing does, would hang in its first product."""
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=60,
                   env={**os.environ, "OMP_NUM_THREADS": "2"})


ALLOCATING = """
import resource, torch
from minigpt.processor import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
for _ in range(12):  # it takes a few until the blocks have found their places
    before = faults()
    blocks = [torch.ones(5_000_000) for _ in range(4)]
    after = faults()
    del blocks
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc",
                    reason="another C library has another allocator")
def test_memory_that_was_freed_is_not_taken_from_the_system_again():
    """In a process of its own, since nothing undoes it.

    A page fault is one page (4 kB) asked of the system.
    """
    done = subprocess.run([sys.executable, "-c", ALLOCATING], check=True, capture_output=True,
                          text=True)
    assert int(done.stdout) < 1_000  # 80 MB are 19,500 pages, which the C library would give back


@pytest.mark.parametrize("sizes, between_64_and_128", [
    (8, {72, 80, 88, 96, 104, 112, 120, 128}), (4, {80, 96, 112, 128})])
def test_sizes_are_rounded_up_to_few_between_two_powers_of_two(sizes, between_64_and_128):
    for size in range(1, 3000):
        power = 2 ** (size.bit_length() - 1)
        assert processor.size_step(size, sizes) == max(1, power // sizes)
    rounded = {-(-size // step) * step for size in range(65, 129)
               for step in [processor.size_step(size, sizes)]}
    assert rounded == between_64_and_128


def weights_after_steps(adamw):
    """(weights, state) of a layer after ten steps, of which five are before a load of the state."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8, generator=generator))
    optimizer = adamw([weight], lr=0.1, weight_decay=0.1, betas=(0.9, 0.99), fused=True)
    for step in range(10):
        weight.grad = torch.randn(8, 8, generator=generator)
        optimizer.step()
        optimizer.zero_grad()
        assert weight.grad is None
        if step == 4:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = adamw([weight], lr=1.0, fused=True)
            optimizer.load_state_dict(state)
    return weight, optimizer.state_dict()


def test_adamw_is_torchs():
    (found, found_state), (expected, expected_state) = map(weights_after_steps, (
        processor.AdamW, torch.optim.AdamW))
    assert torch.equal(found, expected)
    assert found_state["param_groups"] == expected_state["param_groups"]
    for name, value in expected_state["state"][0].items():
        assert torch.equal(found_state["state"][0][name], value)


def test_training_saving_and_resuming_import_no_compiler(tmp_path):
    program = """
import sys
import torch
from minigpt import MiniGPT
from sft import sft_train
for resume in (False, True):
    torch.manual_seed(0)
    sft_train(MiniGPT(), [{"prompt": "a", "response": "b"}] * 4, 1, batch_size=2, save_every=1,
              out=sys.argv[1], resume=resume)
assert "torch.optim" in sys.modules and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
