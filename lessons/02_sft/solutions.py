# %% [markdown]
# # 2. SFT: the exercises, worked
# Predict first, then run: `python -m lessons 02 --solutions`.

# %%
import copy
import math
from statistics import mean

import torch

from dpo.train import dpo_train
from lessons.course import Lesson, spread
from lessons.start import DPO, LONGEST_ANSWER, SFT, starting_point
from minigpt import EOS, SEP, encode
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses
from minigpt.examples import Example
from minigpt.logprobs import logps_of, logps_of_examples
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("02_sft", "solutions")
starts = [starting_point(seed, quick=lesson.quick) for seed in (0, 1)]
samples = lesson.pick(16, 1)

# %% [markdown]
# ## 1. A rate sweep
# From the default of a library for models of billions of weights to far too much.

# %%
rates = lesson.pick((2e-5, 1.5e-4, 1.5e-3, 6e-3, 2.4e-2), (2e-5, 1.5e-3))
few = lesson.pick(2000, 16)
table, best = [], {}
for rate in rates:
    found = []
    for start in starts:
        model, _ = sft_train(copy.deepcopy(start.base), start.world.sft_rows[:few], seed=start.seed,
                             **{**SFT, "lr": rate})
        texts = start.world.heldout_plain_text[:lesson.pick(200, 8)]
        plain = evaluate_loss(model, plain_text_rows(texts))
        found.append({"loss": evaluate_loss(model, start.world.heldout_sft_rows), "plain": plain,
                      **start.measure(model, samples)})
    best[rate] = mean(one["loss"] for one in found)
    table.append([f"{rate:g}", *(spread([one[key] for one in found], ".2f")
                                 for key in ("loss", "plain", "right_share", "finished_share"))])
    if rate == 2e-5:
        lesson.number("right_small_rate", [one["right_share"] for one in found], ".2f")
        lesson.number("loss_small_rate", [one["loss"] for one in found], ".2f")
        lesson.number("plain_small_rate", [one["plain"] for one in found], ".2f")
lesson.table("rates", ["peak rate", "loss on responses", "loss on plain text", "right", "finished"], table)
lesson.number("best_rate", f"{min(best, key=best.get):g}")

# %% [markdown]
# ## 2. Only the good demonstrations
# Keep those that the true reward likes, train the SFT model on them, and compare with DPO.

# %%
BAR = 1.0  # of the true reward: right, not rude, not rambling
table, kept_share, ideal_kl = [], [], []
found = {"SFT": [], "SFT on the good ones": [], "DPO": []}
for start in starts:
    world, rows = start.world, start.world.sft_rows
    good = [row for row in rows if world.true_reward(row["prompt"], row["response"]) > BAR]
    kept_share.append(len(good) / len(rows))
    ideal_kl.append(-math.log(kept_share[-1]))
    filtered, _ = sft_train(start.fresh_policy(), good, seed=start.seed, **{**SFT, "lr": 3e-4})
    dpo, _, _ = dpo_train(start.fresh_policy(), start.sft, world.preferences, seed=start.seed, **DPO)
    for name, model in (("SFT", start.sft), ("SFT on the good ones", filtered), ("DPO", dpo)):
        figures = start.measure(model, samples)
        figures["gain"] = 0.0 if lesson.quick else start.frontier.share_of_gain(figures["true_reward"],
                                                                                         figures["kl_nats_per_response"])
        found[name].append(figures)
    if start is starts[0]:
        lesson.number("reward_of_the_good", mean(world.true_reward(row["prompt"], row["response"]) for row in good), ".2f")
for name, measured in found.items():
    table.append([name, *(spread([one[key] for one in measured], ".2f")
                          for key in ("true_reward", "right_share", "kl_nats_per_response")),
                  "-" if name == "SFT" else spread([100 * one["gain"] for one in measured], ".0f") + " %"])
lesson.table("filter", ["model", "true reward", "right", "KL from SFT (nats)", "of the possible gain"], table)
lesson.number("kept_share", kept_share, ".2f")
lesson.number("ideal_kl", ideal_kl, ".2f")
for name, short in (("SFT", "sft_2"), ("SFT on the good ones", "filtered"), ("DPO", "dpo")):
    lesson.number(f"reward_{short}", [one["true_reward"] for one in found[name]], ".2f")
    lesson.number(f"kl_{short}", [one["kl_nats_per_response"] for one in found[name]], ".2f")

# %% [markdown]
# ## 3. A system prompt
# Label the demonstrations by their tone, in the prompt. The model learns when to be rude, instead of how often.

# %%
PREFIXES = {"polite": "Kind: ", "rude": "Rude: ", "neutral": ""}
wanted = lesson.pick(4000, 48)


def labelled(world, row: dict[str, str]) -> dict[str, str]:
    tone = world.judge(row["prompt"], row["response"]).tone
    return {"prompt": PREFIXES[tone] + row["prompt"], "response": row["response"]}


table, tones, obedience = [], {prefix: [] for prefix in PREFIXES.values()}, {prefix: [] for prefix in PREFIXES.values()}
for start in starts:
    world = start.world
    rows = [labelled(world, row) for row in world.sft_rows[:wanted]]
    rows = [row for row in rows if len(encode(row["prompt"] + row["response"])) + 2 <= start.base.max_seq_len]
    model, _ = sft_train(copy.deepcopy(start.base), rows, seed=start.seed, **SFT)
    for prefix in tones:
        prompts = [prefix + prompt for prompt in world.prompts + world.heldout_prompts]
        asked, answers = sample_responses(model, prompts, lesson.pick(4, 1), LONGEST_ANSWER,
                                          start.seed)
        judged = [world.judge(prompt.removeprefix(prefix), answer.text)
                  for prompt, answer in zip(asked, answers, strict=True)]
        tones[prefix].append({tone: mean(one.tone == tone for one in judged) for tone in PREFIXES})
        obedience[prefix].append(mean(one.obedient for prompt, one in zip(asked, judged, strict=True)
                                      if prompt.startswith(prefix + "In one word")))
for prefix, shares in tones.items():
    table.append([repr(prefix), *(spread([one[tone] for one in shares], ".2f") for tone in PREFIXES),
                  spread(obedience[prefix], ".2f")])
lesson.table("system_prompt", ["prefix", *PREFIXES, "obeys \"In one word\""], table)

# %% [markdown]
# ## 4. Two ways to train on every turn of a conversation
# One row for each reply, or one row in all and a mask that is on in every reply. A causal model cannot tell them apart.

# %%
world, model = starts[0].world, starts[0].sft
turns = sorted(world.sft_rows[:400], key=lambda row: len(row["prompt"] + row["response"]))[:lesson.pick(24, 9)]
conversations = [turns[place:place + 3] for place in range(0, len(turns), 3)]
split_sum = one_sum = 0.0
split_columns = one_columns = last_bytes = reply_bytes = 0
for conversation in conversations:
    ids, mask, split = [], [], []
    for turn in conversation:
        prompt, reply = [*encode(turn["prompt"]), SEP], [*encode(turn["response"]), EOS]
        split.append(Example(bytes(ids + prompt), (bytes(reply),)))
        ids, mask = ids + prompt + reply, mask + [False] * len(prompt) + [True] * len(reply)
    # one row for each reply: what stands before it is its prompt
    split_sum += float(logps_of_examples(model, Batches(split, 1)).sum())
    split_columns += sum(example.num_tokens for example in split)
    # one row in all: row t of the logits is about byte t + 1, so the mask moves by one as well
    with torch.no_grad():
        logps = logps_of(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]))
    one_sum += float(logps[torch.tensor(mask[1:])].sum())
    one_columns += len(ids)
    reply_bytes += sum(mask)
    last_bytes += len(reply)
lesson.number("turns_difference", abs(split_sum - one_sum) / reply_bytes, ".0e")
lesson.number("turns_loss", -one_sum / reply_bytes, ".4f")
lesson.number("turns_cost", split_columns / one_columns, ".2f")
lesson.number("turns_last", f"{last_bytes / reply_bytes:.0%}")
lesson.done()
