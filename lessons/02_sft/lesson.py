# %% [markdown]
# # 2. SFT
# The article is README.md beside this file. Run this cell by cell, or `python -m lessons 02`.

# %%
import copy

import torch

from data.examples import sft_examples
from lessons.course import Lesson
from lessons.start import SFT, starting_point
from minigpt import EOS, MiniGPT, decode, encode, generate
from minigpt.batching import collate
from minigpt.examples import Example
from minigpt.logprobs import token_logps
from minigpt.sampling import sample_ids
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("02_sft")
start = starting_point(quick=lesson.quick)
world = start.world

# %% [markdown]
# ## The base model knows, and cannot answer
# It has never seen SEP. It knows questions only as plain text, so we ask it in both ways.

# %%
prompts = [prompt for prompt in world.heldout_prompts if len(prompt) < 50][:4]
plain = [[EOS, *encode(prompt + " ")] for prompt in prompts]
after_sep, sft = ([answer.text[:40] for answer in generate(model, prompts, 60, greedy=True)]
                  for model in (start.base, start.sft))
goes_on = [decode(ids)[:40] for ids in sample_ids(start.base, plain, 60, greedy=True)]
lesson.table("answers", ["prompt", "base, after SEP", "base, in plain text", "SFT"],
             [[prompt, *map(repr, said)]
              for prompt, *said in zip(prompts, after_sep, goes_on, sft, strict=True)],
             title="The most likely answer of each model, to its 40th byte")

# %% [markdown]
# ## What the loss counts: one demonstration, byte by byte
# To see the surprise of the prompt's bytes too, we call all but the first byte a response.

# %%
def surprise(model: MiniGPT, example: Example) -> list[float]:
    """-log p of every byte but the first, in nats."""
    whole = Example(example.prompt[:1], (example.prompt[1:] + example.responses[0],))
    with torch.no_grad():
        return (-token_logps(model, collate([whole])))[0, 1:].tolist()


row = next(row for row in world.heldout_sft_rows
           if row["prompt"].endswith("?") and len(row["response"]) > 20)
example = sft_examples([row], start.sft.max_seq_len)[0]
labels = [*row["prompt"], "SEP", *row["response"], "EOS"][1:]
first = len(example.prompt) - 1  # the first byte of the response
figure, axis = lesson.panels()
figure.set_size_inches(8.5, 3.2)
for shift, name, model in ((-0.2, "base", start.base), (0.2, "SFT", start.sft)):
    axis.bar([x + shift for x in range(len(labels))], surprise(model, example), 0.4, label=name)
axis.axvspan(-0.6, first - 0.5, color="#dddddd", zorder=0)
axis.text(0, 16.8, "prompt: read, not scored", fontsize=9)
axis.text(first, 16.8, "response: scored", fontsize=9)
axis.set_xticks(range(len(labels)), labels, fontsize=6.8)
axis.grid(False, axis="x")
axis.set(xlabel="the bytes of one demonstration, in order", ylabel="surprise, -log p (nats)",
         xlim=(-0.8, len(labels) - 0.2), ylim=(0, 18.5))
axis.legend(loc="upper right", ncols=2)
fork = max(range(first, len(labels)), key=surprise(start.sft, example).__getitem__)
lesson.number("demonstration", f"{row['prompt']} {row['response']}")
lesson.number("hardest_byte", labels[fork])
lesson.figure("row", figure, "One held-out demonstration. After SFT nearly every byte of the "
              "response is certain. What surprise is left is at the forks, where the answer can go "
              f"on in more than one way, most of it at {labels[fork]!r}.")

# %% [markdown]
# ## Train it yourself, and look at what it forgets
# Two runs from the base model: on demonstrations alone, and with some plain text mixed in.

# %%
few = lesson.pick(2000, 48)
demonstrations = world.sft_rows[:few]
mixed = demonstrations + plain_text_rows(world.plain_text[:few * 3 // 10])
texts = plain_text_rows(world.heldout_plain_text)
rows = []
for name, data in (("base", []), ("SFT", demonstrations), ("SFT + 30 % plain text", mixed)):
    model = copy.deepcopy(start.base)
    if data:
        sft_train(model, data, **SFT)
    rows.append([name, f"{evaluate_loss(model, world.heldout_sft_rows):.2f}",
                 f"{evaluate_loss(model, texts):.2f}", f"{start.measure(model)['right_share']:.0%}",
                 repr(generate(model, [""], 40, seed=3)[0].text)])
HEAD = ["model", "loss on responses", "loss on plain text", "right", "says to an empty prompt"]
lesson.table("forgetting_once", HEAD, rows,
             title=f"{few:,} demonstrations, with and without plain text")
lesson.done()
