# %% [markdown]
# # 1. Bytes and MiniGPT
# The article is README.md beside this file. Run this cell by cell, or `python -m lessons 01`.

# %%
import math
import time
from collections import Counter
from itertools import pairwise

import torch

from lessons.course import Lesson
from lessons.start import BASE, SIZE, starting_point
from minigpt import EOS, SEP, MiniGPT, encode, generate
from minigpt.plots import running_mean
from minigpt.sampling import sample_ids, sample_without_cache
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("01_bytes_and_minigpt")
start = starting_point(quick=lesson.quick)
plain_text = start.world.plain_text
heldout = plain_text_rows(start.world.heldout_plain_text)

# %% [markdown]
# ## A text is its bytes

# %%
lesson.table("bytes", ["text", "characters", "bytes"],
             [[text, len(text), encode(text)] for text in ("Oslo", "née", "東")],
             title="Every text is a list of numbers from 0 to 255")

# %% [markdown]
# ## Two yardsticks that need no network
# How surprising is a byte if we only know how often each occurs? And if we know the byte before it?

# %%
def entropy(counts: Counter) -> float:
    return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())


pairs = [pair for text in plain_text for pair in pairwise([EOS, *encode(text), EOS])]
one_byte = entropy(Counter(second for _, second in pairs))
last_byte = entropy(Counter(pairs)) - entropy(Counter(first for first, _ in pairs))

# %% [markdown]
# ## What does it learn, and in which order?
# For each row of the table, a fresh model reads so many paragraphs of plain text.

# %%
rows, curve = [], []
for amount in lesson.progress(lesson.pick((0, 100, 500, 2000, 6000), (0, 16)), "models"):
    torch.manual_seed(0)
    model = MiniGPT(**SIZE)
    if amount:
        model, curve = sft_train(model, plain_text_rows(plain_text[:amount]), **BASE)
    said = generate(model, [""], max_new_tokens=50, seed=1)[0].text
    rows.append([f"{amount:,}", f"{evaluate_loss(model, heldout):.2f}", repr(said)])
lesson.table("growth", ["paragraphs read", "held-out loss", "says to an empty prompt"], rows,
             title="What MiniGPT says after reading more and more")

# %%
figure, axis = lesson.panels()
axis.plot(range(1, len(curve) + 1), running_mean(curve, 5))
for height, text in ((math.log(256), "knows nothing: ln 256"), (one_byte, "byte frequencies"),
                     (last_byte, "what the last byte tells")):
    axis.axhline(height, color="grey", linestyle=":", linewidth=1)
    axis.text(1, height + 0.08, f"{text} = {height:.2f}", fontsize=8.5)
axis.set(xlabel="optimizer step (8 paragraphs each)", ylabel="loss (nats per byte)", ylim=(0, 6.1))
axis.set_xscale("log")
axis.set_xticks((1, 10, 100, 750), ("1", "10", "100", "750"))
lesson.figure("loss", figure, "The loss starts at ln 256, falls below what byte frequencies tell "
              f"({one_byte:.2f}) and then below what the last byte tells ({last_byte:.2f}).")

# %% [markdown]
# ## It is causal: change one byte, and nothing before it moves

# %%
texts = [f"The capital of {country} is Tokyo." for country in ("Japan", "Sapan")]
with torch.no_grad():
    moved = start.base(torch.tensor(list(map(encode, texts)))).diff(dim=0).abs().amax(-1)[0]
lesson.number("largest_change_before_the_J", float(moved[:15].max()), ".2f")
lesson.number("smallest_change_from_the_J_on", float(moved[15:].min()), ".2f")

# %% [markdown]
# ## The cache: the same bytes in less time
# An untrained model hardly ever ends by itself, so both texts are as long as allowed.

# %%
torch.manual_seed(0)
talker, prompt = MiniGPT(**SIZE), [[*encode("What is the capital of Japan?"), SEP]]
began = time.perf_counter()
slow = sample_without_cache(talker, prompt, 96, 1.0, top_k=None, greedy=True, generator=None)
between = time.perf_counter()
fast = sample_ids(talker, prompt, 96, greedy=True)
lesson.number("times_faster_with_cache", (between - began) / (time.perf_counter() - between), ".1f")
assert fast == slow, "the cache must not change a byte"
lesson.done()
