# %% [markdown]
# # 13. Round after round
# The article is README.md beside this file. Run this from the shell (`python -m lessons 13`) or
# cell by cell: 768 labels, read once by DPO or turned into a judge, in about a minute.

# %%
from functools import partial

from dpo import dpo_train
from dpo.rounds import OnlineConfig, dpo_rounds
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, REWARD, SFT, starting_point
from minigpt.evaluation import evaluate_policy
from minigpt.judged import RoundsConfig, sample_judged
from minigpt.plots import COLOURS
from minigpt.sampling import generate
from reward.evaluate import score
from reward.start import train_centered
from reward.train import RewardConfig
from sft.rounds import RejectionConfig, sft_rounds
from sft.train import SFTConfig

lesson = Lesson("13_round_after_round")
start = starting_point(quick=lesson.quick)
prompts, rounds = start.world.prompts, lesson.pick(6, 2)
ROUND = {"rounds": 1, "round_prompts": lesson.pick(128, 8)}
STEPS = {**DPO, "batch_size": 16}
labels = start.world.preferences[:rounds * ROUND["round_prompts"]]
(model,), _, _ = train_centered(start.sft, labels, prompts, RewardConfig(**REWARD), LONGEST_ANSWER)


judge = partial(score, model)  # what rounds ask for: (prompts, responses) -> scores

# %% [markdown]
# ## What a round learns from
# Online DPO learns the first of these against the last; rejection sampling imitates the first.

# %%
one = RoundsConfig(**ROUND | {"round_prompts": 1})
(asked, answers, scores), = sample_judged(start.sft, prompts, judge, one, LONGEST_ANSWER, 3)[0]
lesson.table("ranked", ["judge", "true reward", "answer"],
             [[f"{value:+.1f}", f"{start.world.true_reward(asked, text):+.1f}", text]
              for value, text in sorted(zip(scores, answers, strict=True), reverse=True)],
             title=f"Answers to: {asked}")


# %% [markdown]
# ## Three ways to spend six rounds, beside one pass over the labels

# %%
def online(policy, seed, reference="start"):
    return dpo_rounds(policy, start.sft, prompts, judge, OnlineConfig(reference=reference, **ROUND),
                      DPOConfig(**STEPS | {"seed": seed}), LONGEST_ANSWER)[0]


def rejection(policy, seed):
    return sft_rounds(policy, prompts, judge, RejectionConfig(**ROUND),
                      SFTConfig(**SFT | {"seed": seed}), LONGEST_ANSWER)[0]


def measured(policy):
    """The mean true reward, and the judge's mean score, of answers to held-out prompts."""
    found = evaluate_policy(policy, start.sft, start.world.heldout_prompts, lesson.pick(16, 1),
                            LONGEST_ANSWER, 0, start.world.measure, judge)
    return found["true_reward"], found["proxy_reward"]


WAYS = {"online DPO": online, "rejection sampling": rejection,
        "online DPO, last round": partial(online, reference="last")}
policies, paths = {"SFT": start.sft}, {}
for name, one_round in WAYS.items():
    policies[name], paths[name] = start.fresh_policy(), [measured(start.sft)]
    for seed in lesson.progress(range(rounds), name):
        policies[name] = one_round(policies[name], seed)
        paths[name].append(measured(policies[name]))
one_pass = dpo_train(start.fresh_policy(), start.sft, labels, **STEPS)[0]
policies["DPO, one pass"] = one_pass
paths["DPO, one pass"] = [measured(one_pass)] * (rounds + 1)  # a level line

# %%
figure, axes = lesson.panels(2, height=3.8)
for axis, number, name in zip(axes, range(2), ("true reward", "judge's score"), strict=True):
    shown = {way: [pair[number] for pair in path] for way, path in paths.items()}
    lesson.table(name.split()[-1], ["round", *range(rounds + 1)],
                 [[way, *(f"{value:+.2f}" for value in path)] for way, path in shown.items()], name)
    for (way, path), colour in zip(shown.items(), COLOURS, strict=False):
        axis.plot(path, "o-", color=colour, label=way)
    axis.set(xlabel="round", ylabel=name, xticks=range(rounds + 1))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
lesson.figure("one_seed", figure, "The judge's score rises; the true reward need not. One seed.")

# %%
lesson.table("answers", ["prompt", "policy", "answer", "judge", "true reward"], [
    [prompt, way, text, f"{float(judge([prompt], [text])):+.1f}",
     f"{start.world.true_reward(prompt, text):+.1f}"]
    for prompt in start.world.heldout_prompts[:3] for way, policy in policies.items()
    for text in [generate(policy, [prompt], LONGEST_ANSWER, greedy=True)[0].text]],
    title="The most likely answers")
lesson.done()
