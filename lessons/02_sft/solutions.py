# %% [markdown]
# # 2. SFT: the exercises, worked
# Predict first, then run: `python -m lessons 02 --solutions`.

# %%
import copy
import math
from statistics import mean

import torch

from lessons.course import Lesson, spread
from lessons.start import LONGEST_ANSWER, MODELS, SFT, Start, starting_point
from minigpt import EOS, SEP, encode, load_checkpoint
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses
from minigpt.examples import Example
from minigpt.logprobs import logps_of, logps_of_examples
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("02_sft", "solutions")
starts = [starting_point(seed, quick=lesson.quick)
          for seed in lesson.pick((0, 1, 2, 3, 4), (0, 1))]
few = lesson.pick(2000, 48)

# %% [markdown]
# ## 1. Three learning rates
# The default of a library for models of billions of weights, the course's rate, and 16 times that.
# One seed; the article has five.

# %%
start, rows = starts[0], []
texts = plain_text_rows(start.world.heldout_plain_text)
for rate in (2e-5, 1.5e-3, 2.4e-2):
    model, _ = sft_train(copy.deepcopy(start.base), start.world.sft_rows[:few],
                         **{**SFT, "lr": rate})
    rows.append([f"{rate:g}", f"{evaluate_loss(model, start.world.heldout_sft_rows):.2f}",
                 f"{evaluate_loss(model, texts):.2f}",
                 f"{start.measure(model)['right_share']:.0%}"])
lesson.table("rates_once", ["peak rate", "loss on responses", "loss on plain text", "right"], rows,
             title="Too low, right and too high a learning rate")

# %% [markdown]
# ## 2. Only the good demonstrations
# Keep those that the true reward likes, and train the SFT model on them.

# %%
BAR = 1.0  # of the true reward: right, not rude, not rambling


def filtered(start: Start) -> tuple[dict[str, float], float]:
    """What training on the good demonstrations brings, and which share of all they are."""
    rows = start.world.sft_rows[:few]
    good = [row for row in rows if start.world.true_reward(row["prompt"], row["response"]) > BAR]
    model, _ = sft_train(start.fresh_policy(), good, seed=start.seed, **{**SFT, "lr": 3e-4})
    return start.measure(model), len(good) / len(rows)


before = [start.measure(start.sft) for start in starts]
after, kept = zip(*map(filtered, starts), strict=True)
dpo = starts[0].measure(load_checkpoint(MODELS / "dpo.pt"))
rows = [[name, *(spread([one[key] for one in found], ".2f") if len(found) > 1
                 else f"{found[0][key]:.2f}"
                 for key in ("true_reward", "right_share", "kl_nats_per_response"))]
        for name, found in (("SFT", before), ("SFT on the good ones", after),
                            ("DPO, seed 0 only", [dpo]))]
lesson.table("filter", ["model", "true reward", "right", "KL from SFT (nats)"], rows,
             title="Imitating only the good demonstrations")
lesson.number("kept_share", kept, ".2f")
lesson.number("ideal_kl", [-math.log(share) for share in kept], ".2f")
lesson.number("filter_gain", [b["true_reward"] - a["true_reward"]
                              for a, b in zip(before, after, strict=True)], ".2f")

# %% [markdown]
# ## 3. A system prompt
# Name the tone of each demonstration in its prompt, and train the SFT model on that.

# %%
PREFIXES = {"polite": "Kind: ", "rude": "Rude: ", "neutral": ""}


def labelled(start: Start, row: dict[str, str]) -> dict[str, str]:
    tone = start.world.judge(row["prompt"], row["response"]).tone
    return {"prompt": PREFIXES[tone] + row["prompt"], "response": row["response"]}


def tones(start: Start) -> dict[str, dict[str, float]]:
    """Prefix -> the shares of each tone, and of answers in one word where one word is wanted."""
    world, found = start.world, {}
    rows = [labelled(start, row) for row in world.sft_rows[:few]]
    model, _ = sft_train(start.fresh_policy(), rows, seed=start.seed, **SFT)
    for prefix in PREFIXES.values():
        prompts = [prefix + prompt for prompt in world.prompts + world.heldout_prompts]
        prompts, answers = sample_responses(model, prompts, 2, LONGEST_ANSWER, start.seed)
        judged = [world.judge(prompt.removeprefix(prefix), answer.text)
                  for prompt, answer in zip(prompts, answers, strict=True)]
        found[prefix] = {tone: mean(one.tone == tone for one in judged) for tone in PREFIXES}
        found[prefix]["obeys"] = mean(one.obedient for prompt, one in
                                      zip(prompts, judged, strict=True) if "In one word" in prompt)
    return found


by_seed = [tones(start) for start in starts]
lesson.table("system_prompt", ["prefix", *PREFIXES, 'obeys "In one word"'],
             [[repr(prefix), *(spread([found[prefix][key] for found in by_seed], ".2f")
                               for key in (*PREFIXES, "obeys"))] for prefix in PREFIXES.values()],
             title="What a word in front of the prompt does")

# %% [markdown]
# ## 4. Two ways to train on every turn of a conversation
# One row for each reply, or one row with a mask that is on in every reply. A causal model cannot
# tell them apart.

# %%
world, model = starts[0].world, starts[0].sft
turns = sorted(world.sft_rows[:400], key=lambda row: len(row["prompt"] + row["response"]))
turns = turns[:lesson.pick(24, 9)]
split, logps = [], 0.0
columns = last_bytes = reply_bytes = 0
for place in range(0, len(turns), 3):
    ids, mask = [], []
    for turn in turns[place:place + 3]:
        prompt, reply = [*encode(turn["prompt"]), SEP], [*encode(turn["response"]), EOS]
        # one row for each reply: what stands before it is its prompt
        split.append(Example(bytes(ids + prompt), (bytes(reply),)))
        ids, mask = ids + prompt + reply, mask + [False] * len(prompt) + [True] * len(reply)
    # one row in all: column t of the logits is about byte t + 1, so the mask moves by one as well
    with torch.no_grad():
        of_bytes = logps_of(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]))
    logps += float(of_bytes[torch.tensor(mask[1:])].sum())
    columns += len(ids)
    last_bytes += len(reply)
    reply_bytes += sum(mask)
difference = abs(float(logps_of_examples(model, Batches(split, 1)).sum()) - logps) / reply_bytes
lesson.number("turns_difference", difference, ".0e")
lesson.number("turns_loss", -logps / reply_bytes, ".2f")
lesson.number("turns_cost", sum(example.num_tokens for example in split) / columns, ".1f")
lesson.number("turns_last", f"{last_bytes / reply_bytes:.0%}")
lesson.done()
