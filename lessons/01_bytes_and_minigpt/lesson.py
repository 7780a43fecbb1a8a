# %% [markdown]
# # 1. Bytes and MiniGPT
# The article is README.md beside this file. Run this from the shell (`python -m lessons 01`) or cell by cell.

# %%
import math
import time
from collections import Counter
from itertools import pairwise

import torch

from lessons.course import Lesson
from lessons.diagrams import Box, draw_pipeline
from lessons.start import BASE, SIZE, starting_point
from minigpt import EOS, PAD, SEP, MiniGPT, decode, encode, generate
from minigpt.plots import running_mean
from minigpt.sampling import sample_ids
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("01_bytes_and_minigpt")
start = starting_point(quick=lesson.quick)

# %% [markdown]
# ## A text is its bytes

# %%
for text in ("Paris", "née", "東"):
    print(f"{text!r}: {len(text)} characters, {len(encode(text))} bytes {encode(text)}, and back: {decode(encode(text))!r}")
lesson.number("eos", str(EOS))
lesson.number("sep", str(SEP))
lesson.number("pad", str(PAD))

# %% [markdown]
# ## An untrained model knows nothing: its loss is ln 256

# %%
torch.manual_seed(0)
texts = start.world.heldout_plain_text
untrained = evaluate_loss(MiniGPT(**SIZE), plain_text_rows(texts))
lesson.number("ln_256", math.log(256), ".4f")
lesson.number("loss_untrained", untrained, ".4f")
lesson.number("parameters", f"{MiniGPT().count_parameters():,}")
lesson.number("parameters_small", f"{start.base.count_parameters():,}")

# %% [markdown]
# ## What does it learn, and in which order?
# Two yardsticks that need no network: guessing bytes by how often they occur, and by what usually follows the last byte.

# %%
bytes_of_texts = [[EOS, *encode(text), EOS] for text in start.world.plain_text]
pairs = Counter(pair for ids in bytes_of_texts for pair in pairwise(ids))
firsts, seconds = Counter(), Counter()
for (first, second), count in pairs.items():
    firsts[first] += count
    seconds[second] += count
total = pairs.total()
one_byte = -sum(count / total * math.log(count / total) for count in seconds.values())
two_bytes = -sum(count / total * math.log(count / firsts[first]) for (first, _), count in pairs.items())
lesson.number("frequencies", one_byte, ".2f")
lesson.number("last_byte", two_bytes, ".2f")

# %%
curves = []
for seed in lesson.pick((0, 1, 2), (0, 1)):
    torch.manual_seed(seed)
    rows = plain_text_rows(start.world.plain_text)
    model, losses = sft_train(MiniGPT(**SIZE), rows, seed=seed, **BASE)
    curves.append(losses)
    model_loss = evaluate_loss(model, plain_text_rows(texts))
lesson.number("steps", str(len(curves[0])))
lesson.number("loss_trained", [sum(losses[-50:]) / len(losses[-50:]) for losses in curves], ".3f")
passed = next((step for step, loss in enumerate(running_mean(curves[0], 10), 1) if loss < two_bytes), len(curves[0]))
lesson.number("steps_to_last_byte", str(passed))

figure, axis = lesson.panels()
for number, losses in enumerate(curves):
    axis.plot(range(1, len(losses) + 1), running_mean(losses, 5), alpha=0.8, label=f"seed {number}")
for height, text in ((math.log(256), "knows nothing: ln 256"), (one_byte, "byte frequencies"), (two_bytes, "the last byte")):
    axis.axhline(height, color="grey", linestyle=":", linewidth=1)
    axis.text(len(curves[0]), height + 0.06, text, ha="right", fontsize=8, color="#444444")
axis.set(xlabel="optimizer step", ylabel="loss (nats per byte)", xscale="log", ylim=(0, 6))
axis.set_title("Plain text, from scratch")
axis.legend(loc="lower left")
lesson.figure("loss", figure, f"The loss begins at ln 256 and passes what frequencies alone can know ({one_byte:.2f}). "
              f"After {passed} steps it is below what the last byte can know ({two_bytes:.2f}); words and facts follow.")

# %%
for model, when in ((MiniGPT(**SIZE), "before"), (start.base, "after")):
    answer = generate(model, [""], max_new_tokens=40, seed=1)[0].text
    lesson.number(f"says_{when}", repr(answer[:60]).replace("`", "'"))

# %% [markdown]
# ## It is causal: no byte sees a later one
# Change one byte, and look which outputs move.

# %%
ids = torch.tensor([encode("The capital of Japan is Tokyo.")])
changed = ids.clone()
changed[0, 15] = ord("S")
with torch.no_grad():
    moved = (start.base(ids) - start.base(changed)).abs().amax(-1)[0]
lesson.number("moved_before", f"{moved[:15].max():.1f}")
lesson.number("moved_from", f"{moved[15:].min():.2f}")
figure, axis = lesson.panels(height=2.6)
axis.bar(range(len(moved)), moved.tolist(), color=["#999999"] * 15 + ["#D55E00"] * (len(moved) - 15))
axis.set_xticks(range(len(moved)), [chr(byte) for byte in ids[0].tolist()], fontsize=8)
axis.set(xlabel="byte whose output is looked at", ylabel="largest change of a logit", title="Change the J of Japan to S")
lesson.figure("causal", figure, "Outputs before the changed byte stay exactly as they were; its own and all behind it move.")

# %% [markdown]
# ## The cache: the same tokens, without doing the same work again

# %%
def slow(model: MiniGPT, prompt: list[int], count: int) -> list[int]:
    """The most likely continuation, every byte from the whole text anew."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt):]


longest = 96
torch.manual_seed(0)
talker = MiniGPT(**SIZE)  # untrained: it hardly ever ends by itself, so both are as long as they may be
prompt = [*encode("What is the capital of Japan?"), SEP]
lengths, ratios = lesson.pick((4, 8, 16, 32, 64, longest), (4, 8)), []
with torch.no_grad():
    for count in lengths:
        times = {"slow": [], "cached": []}
        for _ in range(lesson.pick(5, 1)):
            began = time.perf_counter()
            without = slow(talker, prompt, count)
            between = time.perf_counter()
            with_cache = sample_ids(talker, [prompt], count, greedy=True)[0]
            times["slow"].append(between - began)
            times["cached"].append(time.perf_counter() - between)
            assert with_cache == without, "the cache must not change a token"
        ratios.append(min(times["slow"]) / min(times["cached"]))
lesson.number("cache_ratio", ratios[-1], ".1f")
figure, axis = lesson.panels()
axis.plot(lengths, ratios, "o-")
axis.axhline(1, color="grey", linestyle=":")
axis.set(xlabel="bytes generated", ylabel="time without / time with the cache", title="What the cache saves (one text)")
lesson.figure("cache", figure, f"The same bytes come out either way; with the cache {lengths[-1]} of them take "
              f"{ratios[-1]:.1f} times less time, and the longer the text, the more it saves.")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=2.6)
draw_pipeline(axis, {
    "text": Box(0, 0, "text", "data"), "ids": Box(1, 0, "bytes,\nids 0 to 255", "data"),
    "model": Box(2, 0, "MiniGPT", "trained"), "logits": Box(3, 0, "256 logits\nfor the next byte", "data"),
}, [("text", "ids", "encode"), ("ids", "model", "(B, T)"), ("model", "logits", "(B, T, 256)")])
lesson.figure("pipeline", figure, "One model in memory: bytes in, a distribution over the next byte out.")
lesson.done()
