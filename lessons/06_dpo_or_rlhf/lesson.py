# %% [markdown]
# # 6. DPO or RLHF
# The article is README.md beside this file. Run this from the shell (`python -m lessons 06`) or cell by cell.

# %%
import copy
import time
from statistics import mean

import torch

from data.world import MANNERS, WORD
from dpo import dpo_train, evaluate_preference_accuracy
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.limit import BETAS, Frontier, best_of_n_kl
from lessons.start import DPO, LONGEST_ANSWER, PPO, REWARD, SFT, SIZE, kept, starting_point
from minigpt import generate
from minigpt.evaluation import kl_to_reference, sample_responses
from minigpt.plots import COLOURS
from ppo import ppo_training
from reward import RewardModel, evaluate_reward_accuracy, score, train_reward_model
from reward.start import center

lesson = Lesson("06_dpo_or_rlhf")
SEEDS = (0, 1, 2)[:lesson.pick(3, 2)]  # of the main comparison
TWO = SEEDS[:2]                        # of everything else
POOL, N = lesson.pick((512, 16), (8, 2))  # SFT answers to each held-out prompt, and the n of best-of-n
SAMPLES = lesson.pick(16, 1)           # answers to each held-out prompt by every other policy
TOKENS = lesson.pick(LONGEST_ANSWER, 4)
ALL, HALF, QUARTER = lesson.pick((8000, 4000, 2000), (8, 8, 8))  # pairs
EPISODES, HALF_EPISODES = lesson.pick((60, 30), (1, 1))
COLOUR = {"SFT": "#777777", f"best of {N}": COLOURS[2], "reward model + PPO": COLOURS[1], "DPO": COLOURS[0]}

starts = {seed: starting_point(seed, quick=lesson.quick) for seed in SEEDS}
temperature = starts[0].world.config.temperature  # of the annotators
heldout_prompts = {seed: start.world.heldout_prompts[:lesson.pick(None, 4)] for seed, start in starts.items()}
heldout_pairs = {seed: start.world.heldout_preferences[:lesson.pick(None, 8)] for seed, start in starts.items()}

# %% [markdown]
# ## The tools: two ways to train, one way to measure
# Every arm below is one of these two calls.  The reference is the SFT model, always.

# %%
def run_dpo(start, rows, policy=None, **changes):
    """DPO on these rows, from a copy of the SFT model or of another policy."""
    policy = copy.deepcopy(policy or start.sft)
    return dpo_train(policy, start.sft, rows, **{**DPO, **changes})[0]


def run_ppo(start, reward, episodes=HALF_EPISODES, policy=None, prompts=None, **changes):
    """PPO against this reward model, from a copy of the SFT model or of another policy."""
    policy = copy.deepcopy(policy or start.sft)
    prompts = prompts or start.world.prompts
    settings = {**PPO, "num_episodes": episodes, "max_new_tokens": TOKENS, **changes}
    return ppo_training(policy, start.sft, reward, prompts[:lesson.pick(None, 4)], **settings)[0]


def run_reward(start, rows, **changes):
    """A reward model on these rows, with its zero at the SFT model's answers."""
    torch.manual_seed(start.seed)
    model, _, _ = train_reward_model(RewardModel.from_policy(start.sft), rows, seed=start.seed, **{**REWARD, **changes})
    prompts, answers = sample_responses(start.sft, start.world.prompts, 4, TOKENS, start.seed)
    center(model, prompts, [answer.ids for answer in answers])
    return model


def kept_reward(start, rows, **changes):
    """The same, but read from the disk if it has been trained before."""
    made_from = (rows, changes, start.world.sft_rows, start.world.plain_text, SIZE, SFT, REWARD, start.seed)
    return kept(lambda: run_reward(start, rows, **changes), "reward-06", *made_from)


def win_rate(ours, theirs):
    """Rewards (prompts, samples) of two policies: how often ours is higher, every answer against every one of theirs to
    the same prompt; a tie counts one half."""
    ours, theirs = ours[:, :, None], theirs[:, None, :]
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def rewards_of(start, prompts, texts, bias=0.0):
    """True rewards; with a bias what the biased annotators feel instead."""
    return [start.world.true_reward(p, t) + bias * len(WORD.findall(t)) / 10 for p, t in zip(prompts, texts, strict=True)]


def look(start, policy, prompts=None, samples=SAMPLES):
    """What the policy says to held-out prompts."""
    asked, answers = sample_responses(policy, prompts or heldout_prompts[start.seed], samples,
                                      TOKENS, start.seed + 10)
    texts = [answer.text for answer in answers]
    figures = {**start.world.measure(asked, texts), **kl_to_reference(policy, start.sft, asked, answers)}
    figures["kl"] = figures["kl_nats_per_response"]
    figures["words"] = mean(len(WORD.findall(text)) for text in texts)
    judgements = [start.world.judge(p, t) for p, t in zip(asked, texts, strict=True)]
    figures["obedient"] = mean(judgement.obedient for judgement in judgements)
    figures["polite"] = mean(judgement.tone == "polite" for judgement in judgements)
    if prompts is None:
        figures["share"] = frontiers[start.seed].share_of_gain(figures["true_reward"], figures["kl"])
        for name, bias in (("win_rate", 0.0), ("biased_win_rate", BIAS)):
            ours = torch.tensor(rewards_of(start, asked, texts, bias)).view(-1, samples)
            figures[name] = win_rate(ours, sft_rewards[start.seed, bias])
    return figures


# %% [markdown]
# ## What the SFT model can say: the limit, and best-of-n
# Many answers of the SFT model to every held-out prompt.  Their true rewards draw the limit; the reward model picks from
# them.

# %%
BIAS = 2.0  # for later: annotators who give 2 points for every 10 words more
pools, frontiers, sft_rewards, seconds = {}, {}, {}, {"sampling": [], "scoring": []}
for seed, start in starts.items():
    began = time.perf_counter()
    asked, answers = sample_responses(start.sft, heldout_prompts[seed], POOL, TOKENS, seed)
    sampled = time.perf_counter()
    scores = score(start.reward, asked, [answer.ids for answer in answers]).view(-1, POOL)
    seconds["sampling"].append(sampled - began)
    seconds["scoring"].append(time.perf_counter() - sampled)
    texts = [answer.text for answer in answers]
    for bias in (0.0, BIAS):
        sft_rewards[seed, bias] = torch.tensor(rewards_of(start, asked, texts, bias)).view(-1, POOL)
    pools[seed] = (asked, texts, scores)
    frontiers[seed] = Frontier(sft_rewards[seed, 0.0])

# %%
def best_of_n(start):
    """The answer that the reward model likes best among n, for each group of n in the pool."""
    asked, texts, scores = pools[start.seed]
    groups = scores.view(len(scores), -1, N)
    best = groups.argmax(-1) + N * torch.arange(groups.shape[1])          # (prompts, groups): places in the pool
    rewards = sft_rewards[start.seed, 0.0].gather(1, best)
    picked = [POOL * prompt + place for prompt, places in enumerate(best.tolist()) for place in places]
    figures = start.world.measure([asked[i] for i in picked], [texts[i] for i in picked])
    figures["kl"] = mean(best_of_n_kl(of_prompt, N) for of_prompt in scores)
    figures["share"] = frontiers[start.seed].share_of_gain(figures["true_reward"], figures["kl"])
    figures["win_rate"] = win_rate(rewards, sft_rewards[start.seed, 0.0])
    return figures


# %% [markdown]
# ## Side by side: the same pairs, the same SFT model

# %%
began = time.perf_counter()
run_reward(starts[0], starts[0].world.preferences[:ALL])
seconds["reward"] = time.perf_counter() - began

arms, policies = {name: [] for name in COLOUR}, {}
seconds |= {"DPO": [], "PPO": []}
for seed, start in starts.items():
    began = time.perf_counter()
    policies["DPO", seed] = run_dpo(start, start.world.preferences[:ALL])
    trained = time.perf_counter()
    policies["reward model + PPO", seed] = run_ppo(start, start.reward, EPISODES)
    seconds["DPO"].append(trained - began)
    seconds["PPO"].append(time.perf_counter() - trained)
    arms["SFT"].append(look(start, start.sft))
    accuracy = evaluate_reward_accuracy(start.reward, heldout_pairs[seed])
    arms[f"best of {N}"].append(best_of_n(start) | {"accuracy": accuracy})
    for name in ("reward model + PPO", "DPO"):
        policy = policies[name, seed]
        accuracy = evaluate_preference_accuracy(policy, start.sft, heldout_pairs[seed])
        arms[name].append(look(start, policy) | {"accuracy": accuracy})


# %% [markdown]
# ### What is held in memory: bytes of weights, counted

# %%
def megabytes(*models):
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters()) / 2**20


sft, reward = starts[0].sft, starts[0].reward
value = copy.deepcopy(reward)  # as PPO makes it
held = {"SFT": [sft], f"best of {N}": [sft, reward], "reward model + PPO": [sft, sft, reward, value], "DPO": [sft, sft]}
trained = {"SFT": [], f"best of {N}": [], "reward model + PPO": [sft, value], "DPO": [sft]}
whole = {name: megabytes(*held[name]) + 3 * megabytes(*trained[name]) for name in held}  # + gradient, two moments
whole[f"best of {N}"] = max(whole[f"best of {N}"], 4 * megabytes(reward))                # while the reward model is trained
lesson.number("mb_one", megabytes(sft), ".2f")
lesson.number("mb_dpo", megabytes(*held["DPO"]), ".2f")
lesson.number("mb_ppo", megabytes(*held["reward model + PPO"]), ".2f")
lesson.number("mb_dpo_whole", whole["DPO"], ".2f")
lesson.number("mb_ppo_whole", whole["reward model + PPO"], ".2f")

# %%
dpo_time = mean(seconds["DPO"])
times = {"SFT": 0.0, f"best of {N}": seconds["reward"], "reward model + PPO": seconds["reward"] + mean(seconds["PPO"]),
         "DPO": dpo_time}
bayes = [start.world.bayes_accuracy(start.world.heldout_preferences) for start in starts.values()]
rows = []
for label, key, form in (("preference accuracy", "accuracy", ".3f"), ("true reward", "true_reward", ".2f"),
                         ("right answers", "right_share", ".2f"), ("KL (nats per response)", "kl", ".2f"),
                         ("share of the possible gain", "share", ".2f"), ("win rate against SFT", "win_rate", ".2f")):
    not_for_sft = key in ("accuracy", "kl", "share")
    rows.append([label, *("-" if name == "SFT" and not_for_sft else spread([figures[key] for figures in arms[name]], form)
                          for name in COLOUR)])
rows += [["models held at a time", *(len(held[name]) for name in COLOUR)],
         ["of which trained", *(len(trained[name]) for name in COLOUR)],
         ["their weights (MB)", *(f"{megabytes(*held[name]):.2f}" for name in COLOUR)],
         ["at most, with gradients and Adam (MB)", *(f"{whole[name]:.2f}" for name in COLOUR)],
         ["training time (DPO = 1)", *(f"{times[name] / dpo_time:.1f}" for name in COLOUR)]]
lesson.table("side_by_side", ["", *COLOUR], rows)
for short, name in (("sft", "SFT"), ("best", f"best of {N}"), ("ppo", "reward model + PPO"), ("dpo", "DPO")):
    for key, form in (("accuracy", ".3f"), ("true_reward", ".2f"), ("kl", ".2f"), ("share", ".2f"), ("win_rate", ".2f"),
                      ("right_share", ".2f")):
        if short != "sft" or key not in ("accuracy", "kl", "share"):
            lesson.number(f"{key}_{short}", [figures[key] for figures in arms[name]], form)
lesson.number("bayes", bayes, ".3f")
lesson.number("time_ratio", times["reward model + PPO"] / dpo_time, ".1f")
lesson.number("time_reward_alone", seconds["reward"] / dpo_time, ".1f")
lesson.number("time_ppo_alone", mean(seconds["PPO"]) / dpo_time, ".1f")
lesson.number("cost_best_of", N * (sum(seconds["sampling"]) + sum(seconds["scoring"])) / sum(seconds["sampling"]), ".0f")
lesson.number("n", str(N))
gaps = [ppo["true_reward"] - dpo["true_reward"]
        for ppo, dpo in zip(arms["reward model + PPO"], arms["DPO"], strict=True)]
lesson.number("gap", gaps, ".2f")
lesson.number("gap_each", ", ".join(f"{gap:+.2f}" for gap in gaps))

# %% [markdown]
# ### Where each ended, and where each was sent
# If a method solved its own problem exactly, it would stand on the limit: DPO at the tilt exp(r / (temperature beta)), PPO
# at the same with its own beta, because the reward model learns r / temperature.

# %%
targets = {"DPO": temperature * DPO["beta"], "reward model + PPO": temperature * PPO["kl_coeff"]}
figure, axis = lesson.panels(height=3.8)
for number, frontier in enumerate(frontiers.values()):
    axis.plot(frontier.kls, frontier.rewards, color="grey", alpha=0.5, linewidth=1.2,
              label="limit (one line a seed)" if number == 0 else None)
for name, runs in arms.items():
    axis.plot([run["kl"] for run in runs], [run["true_reward"] for run in runs], "o", color=COLOUR[name], label=name)
for name, beta in targets.items():
    at = int((BETAS - beta).abs().argmin())
    kls, heights = ([float(getattr(f, what)[at]) for f in frontiers.values()] for what in ("kls", "rewards"))
    axis.plot(kls, heights, "*", color=COLOUR[name], markersize=10, markeredgecolor="white", markeredgewidth=0.6,
              label=f"where {name.split()[-1]}'s beta aims")
    short = "dpo" if name == "DPO" else "ppo"
    lesson.number(f"aim_kl_{short}", kls, ".2f")
    lesson.number(f"aim_reward_{short}", heights, ".2f")
axis.set(xlabel="KL from the SFT model (nats a response)", ylabel="true reward (held-out prompts)", xlim=(-0.1, 3.5))
axis.set_title("Same pairs, same start, three methods")
axis.legend(loc="lower right")
lesson.figure("frontier", figure, "Share of the possible gain: " + ", ".join(
    f"{name} {mean(run['share'] for run in runs):.2f}" for name, runs in arms.items() if name != "SFT")
    + f" (means over {len(SEEDS)} seeds). Stars: where each method would stand had it solved its own problem exactly.")

# %% [markdown]
# ### "A win rate above 55 % means that it works"
# First: how often does the SFT model beat *itself* by that much, if 100 answers are judged?

# %%
generator = torch.Generator().manual_seed(0)
pool = sft_rewards[0, 0.0]
rates = []
for _ in range(2000):
    prompt = torch.randint(len(pool), (100,), generator=generator)
    ours, theirs = (pool[prompt, torch.randint(POOL, (100,), generator=generator)] for _ in range(2))
    rates.append(float(((ours > theirs) + 0.5 * (ours == theirs)).mean()))
lesson.number("false_alarms", f"{100 * mean(rate > 0.55 for rate in rates):.0f} %")

# %% [markdown]
# ## Which is more stable?  Each at its own learning rate x 0.3, 1, 3, 10
# A quarter of the pairs for DPO, half of the episodes for PPO.

# %%
TIMES = (0.3, 1, 3, 10)
by_rate = {"DPO": {}, "reward model + PPO": {}}
half_ppo = {}
for factor in TIMES:
    for name, runs in by_rate.items():
        runs[factor] = []
        for seed in TWO:
            start = starts[seed]
            if name == "DPO":
                policy = run_dpo(start, start.world.preferences[:QUARTER], lr=factor * DPO["lr"])
            else:
                policy = run_ppo(start, start.reward, lr=factor * PPO["lr"])
                if factor == 1:
                    half_ppo[seed] = policy  # used again below
            runs[factor].append(look(start, policy))
            if factor == TIMES[-1]:
                said = generate(policy, start.world.heldout_prompts[:1], TOKENS, greedy=True)[0].text
                lesson.number(f"says_{'dpo' if name == 'DPO' else 'ppo'}_x10_{seed}", repr(said[:60]).replace("`", "'"))

# %%
lesson.number("asked_x10", starts[0].world.heldout_prompts[0])
lesson.table("rates", ["learning rate", *(f"{name}: {what}" for name in ("DPO", "PPO") for what in
                                          ("true reward", "KL", "right", "win rate"))],
             [[f"x {factor}", *(spread([run[key] for run in by_rate[name][factor]], ".2f") for name in by_rate
                                for key in ("true_reward", "kl", "right_share", "win_rate"))] for factor in TIMES])
figure, (left, right) = lesson.panels(2)
for name, runs in by_rate.items():
    for axis, key in ((left, "true_reward"), (right, "kl")):
        axis.plot(TIMES, [mean(run[key] for run in runs[factor]) for factor in TIMES], "-", color=COLOUR[name], label=name)
        for number in range(len(TWO)):
            axis.plot(TIMES, [runs[factor][number][key] for factor in TIMES], "o", color=COLOUR[name], markersize=4)
sft_reward = mean(float(sft_rewards[seed, 0.0].mean()) for seed in TWO)
left.axhline(sft_reward, color="grey", linestyle=":")
left.text(10, sft_reward, "SFT ", ha="right", va="bottom", fontsize=8, color="#444444")
for axis in (left, right):
    axis.set(xscale="log", xlabel="learning rate / that of the recipe")
    axis.set_xticks(TIMES, [str(factor) for factor in TIMES])
    axis.minorticks_off()
left.set(ylabel="true reward (held-out prompts)", title="What it is worth")
right.set(ylabel="KL from SFT (nats a response)", yscale="log", title="How far it went")
left.legend(loc="best")
means = {name: [mean(run["true_reward"] for run in runs[factor]) for factor in TIMES] for name, runs in by_rate.items()}
(to_three_dpo, to_three_ppo), (to_ten_dpo, to_ten_ppo) = (
    [max(values[:last]) - min(values[:last]) for values in means.values()] for last in (3, 4))
lesson.figure("rates", figure, f"From x 0.3 to x 3 the mean true reward varies by {to_three_dpo:.2f} with DPO and by "
              f"{to_three_ppo:.2f} with PPO; with x 10 by {to_ten_dpo:.2f} and {to_ten_ppo:.2f} (dots: {len(TWO)} seeds).")
for label, value in (("three_dpo", to_three_dpo), ("three_ppo", to_three_ppo), ("ten_dpo", to_ten_dpo),
                     ("ten_ppo", to_ten_ppo)):
    lesson.number(f"range_to_{label}", value, ".2f")
for short, name in (("dpo", "DPO"), ("ppo", "reward model + PPO")):
    for label, factor in (("03", 0.3), ("1", 1), ("3", 3), ("10", 10)):
        for key in ("true_reward", "kl", "right_share", "win_rate", "share"):
            lesson.number(f"{key}_{short}_x{label}", [run[key] for run in by_rate[name][factor]], ".2f")

# %% [markdown]
# ## When does each win?  (a) Few pairs
# Each method does the same number of updates each time; only the number of *different* pairs changes.

# %%
COUNTS = lesson.pick((250, 1000, 4000), (2, 4, 8))
few = {name: {count: [] for count in COUNTS} for name in ("DPO", "reward model + PPO")}
accuracy = {name: {count: [] for count in COUNTS} for name in ("DPO", "reward model")}
half_dpo = {}
for seed in TWO:
    start = starts[seed]
    for count in COUNTS:
        pairs, again = start.world.preferences[:count], COUNTS[-1] // count
        policy = run_dpo(start, pairs, num_epochs=again)
        if count == COUNTS[-1]:
            half_dpo[seed] = policy  # used again below
        reward = kept_reward(start, pairs, num_epochs=2 * again)
        few["DPO"][count].append(look(start, policy))
        few["reward model + PPO"][count].append(look(start, run_ppo(start, reward)))
        accuracy["DPO"][count].append(evaluate_preference_accuracy(policy, start.sft, heldout_pairs[seed]))
        accuracy["reward model"][count].append(evaluate_reward_accuracy(reward, heldout_pairs[seed]))

# %%
figure, (left, right) = lesson.panels(2)
for axis, curves, ylabel in ((left, {name: {count: [run["true_reward"] for run in runs] for count, runs in by.items()}
                                     for name, by in few.items()}, "true reward (held-out prompts)"),
                             (right, accuracy, "preference accuracy (held-out pairs)")):
    for name, by in curves.items():
        colour = COLOUR["DPO" if name == "DPO" else "reward model + PPO"]
        axis.plot(COUNTS, [mean(by[count]) for count in COUNTS], "-", color=colour, label=name)
        for count in COUNTS:
            axis.plot([count] * len(TWO), by[count], "o", color=colour, markersize=4)
    axis.set(xscale="log", xlabel="different pairs (equally many updates)", ylabel=ylabel)
    axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axis.minorticks_off()
left.axhline(sft_reward, color="grey", linestyle=":")
left.text(1.5 * COUNTS[0], sft_reward, "SFT", va="bottom", fontsize=8, color="#444444")
right.axhline(mean(bayes[:2]), color="grey", linestyle=":")
right.text(1.5 * COUNTS[0], mean(bayes[:2]), "Bayes", va="top", fontsize=8, color="#444444")
left.legend(loc="lower right")
right.legend(loc="lower right")
lesson.figure("pairs", figure, f"With {COUNTS[0]} different pairs the reward model ranks "
              f"{mean(accuracy['reward model'][COUNTS[0]]):.2f} of held-out pairs right and DPO "
              f"{mean(accuracy['DPO'][COUNTS[0]]):.2f}; with {COUNTS[-1]} "
              f"{mean(accuracy['reward model'][COUNTS[-1]]):.2f} and {mean(accuracy['DPO'][COUNTS[-1]]):.2f}.")
for number, count in enumerate(COUNTS):
    lesson.number(f"pairs_{number}", str(count))
    for short, name in (("dpo", "DPO"), ("ppo", "reward model + PPO")):
        for key in ("true_reward", "kl"):
            lesson.number(f"{key}_{short}_pairs_{number}", [run[key] for run in few[name][count]], ".2f")
    lesson.number(f"accuracy_dpo_pairs_{number}", accuracy["DPO"][count], ".3f")
    lesson.number(f"accuracy_reward_pairs_{number}", accuracy["reward model"][count], ".3f")

# %% [markdown]
# ## (b) Prompts of another kind
# No pair asks for a sentence.  Measured on held-out prompts that do.  PPO may practise on such prompts, without labels.

# %%
def asks_for_sentence(prompt):
    return prompt.startswith(MANNERS["sentence"])


ranks = {(judge, kind): [] for judge in ("reward", "dpo", "reward_labelled") for kind in ("shifted", "old")}
shifted = {name: [] for name in ("SFT", "DPO", "PPO, practised on\nthe old prompts", "PPO, practised on\nall prompts",
                                 "DPO, with labels\nfor all prompts", "PPO, with labels\nfor all prompts")}
for seed in TWO:
    start = starts[seed]
    pairs = [row for row in start.world.preferences if not asks_for_sentence(row["prompt"])][:HALF]
    reward = kept_reward(start, pairs)
    old = [prompt for prompt in start.world.prompts if not asks_for_sentence(prompt)]
    asked = [prompt for prompt in start.world.heldout_prompts if asks_for_sentence(prompt)][:lesson.pick(None, 2)]
    made = (start.sft, run_dpo(start, pairs), run_ppo(start, reward, prompts=old), run_ppo(start, reward), half_dpo[seed],
            half_ppo[seed])
    for name, policy in zip(shifted, made, strict=True):
        shifted[name].append(look(start, policy, asked, samples=lesson.pick(64, 2)))
    for kind in ("shifted", "old"):
        rows = [row for row in start.world.heldout_preferences if asks_for_sentence(row["prompt"]) == (kind == "shifted")]
        rows = rows[:lesson.pick(None, 4)]
        ranks["reward", kind].append(evaluate_reward_accuracy(reward, rows))
        ranks["reward_labelled", kind].append(evaluate_reward_accuracy(start.reward, rows))
        ranks["dpo", kind].append(evaluate_preference_accuracy(made[1], start.sft, rows))
    lesson.number(f"shifted_prompts_{seed}", str(len(asked)))
for (judge, kind), values in ranks.items():
    lesson.number(f"accuracy_{judge}_{kind}_kind", values, ".3f")


# %%
def dots(axis, groups, key, colours):
    """One row a group, a dot a seed and a line at the mean."""
    for row, (figures_of_seeds, colour) in enumerate(zip(groups.values(), colours, strict=True)):
        values = [figures[key] for figures in figures_of_seeds]
        axis.plot(values, [row] * len(values), "o", color=colour)
        axis.plot([mean(values)] * 2, [row - 0.28, row + 0.28], color=colour, linewidth=2.5)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set_ylim(len(groups) - 0.5, -0.5)


figure, (left, right) = lesson.panels(2, height=3.6, sharey=True)
colours = (COLOUR["SFT"], COLOUR["DPO"], COLOUR["reward model + PPO"], COLOUR["reward model + PPO"], COLOURS[5], COLOURS[4])
dots(left, shifted, "true_reward", colours)
dots(right, shifted, "obedient", colours)
left.set(xlabel="true reward (dots: seeds; bar: mean)", title="On prompts of the kind not labelled")
right.set(xlabel="share of answers that are a sentence", title="The same: does it do as asked?")
gains = {name: mean(run["true_reward"] for run in runs) for name, runs in shifted.items()}
lesson.figure("shifted", figure, "On the kind of prompt that no pair asks, the mean true reward is " + ", ".join(
    f"{value:.2f} ({' '.join(name.split())})" for name, value in gains.items()) + ".")
for short, name in zip(("sft", "dpo", "old", "all", "labelled", "labelled_ppo"), shifted, strict=True):
    for key in ("true_reward", "right_share", "obedient", "kl"):
        lesson.number(f"{key}_{short}_shifted", [run[key] for run in shifted[name]], ".2f")

# %% [markdown]
# ## (c) Annotators who like long answers
# Two points of reward for every ten words more, in the training labels only.  Who wins by the true reward, and who by the
# taste of the same annotators?

# %%
runs = {name: [] for name in ("SFT", "DPO, honest labels", "DPO, biased labels", "PPO, honest labels", "PPO, biased labels")}
for seed in TWO:
    start, biased = starts[seed], starting_point(seed, quick=lesson.quick, length_bias=BIAS)
    made = (start.sft, half_dpo[seed], run_dpo(start, biased.world.preferences[:HALF]), half_ppo[seed],
            run_ppo(start, biased.reward))
    for name, policy in zip(runs, made, strict=True):
        runs[name].append(look(start, policy))
lesson.table("biased", ["", "true reward", "words", "polite", "KL", "win rate (true reward)", "win rate (biased judges)"],
             [[name, *(spread([run[key] for run in of], ".2f")
                       for key in ("true_reward", "words", "polite", "kl", "win_rate", "biased_win_rate"))]
              for name, of in runs.items()])
for short, name in zip(("sft", "dpo_honest", "dpo_biased", "ppo_honest", "ppo_biased"), runs, strict=True):
    for key in ("true_reward", "words", "polite", "win_rate", "biased_win_rate"):
        lesson.number(f"{key}_{short}_bias", [run[key] for run in runs[name]], ".2f")

# %% [markdown]
# ## (d) The second half of the budget
# Half of the pairs for DPO first, or half of the episodes of PPO first.  Then what?  The reward model can label answers
# that no person saw.

# %%
def fresh_pairs(start, policy, count):
    """Two new answers of the policy to each prompt; the reward model plays annotator, and draws the label as they do."""
    asked = [start.world.prompts[number % len(start.world.prompts)] for number in range(count)]
    first, second = (generate(policy, asked, TOKENS, seed=seed) for seed in (1, 2))
    margins = score(start.reward, asked, [a.ids for a in first]) - score(start.reward, asked, [a.ids for a in second])
    first_wins = torch.rand(count, generator=torch.Generator().manual_seed(start.seed)) < margins.sigmoid()
    rows = []
    for prompt, a, b, wins in zip(asked, first, second, first_wins.tolist(), strict=True):
        if a.text.strip() and b.text.strip() and a.text != b.text:
            chosen, rejected = (a, b) if wins else (b, a)
            rows.append({"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text})
    return rows


second = {name: [] for name in ("DPO, half", "DPO, all pairs", "DPO, then DPO on\nfresh pairs", "DPO, then PPO",
                                "PPO, half", "PPO, all episodes", "PPO, then DPO")}
fresh_counts = []
for seed in TWO:
    start, pairs = starts[seed], starts[seed].world.preferences[:HALF]
    fresh = fresh_pairs(start, half_dpo[seed], HALF)
    fresh_counts.append(len(fresh))
    made = (half_dpo[seed], policies["DPO", seed], run_dpo(start, fresh, half_dpo[seed]),
            run_ppo(start, start.reward, policy=half_dpo[seed]),
            half_ppo[seed], policies["reward model + PPO", seed], run_dpo(start, pairs, half_ppo[seed]))
    for name, policy in zip(second, made, strict=True):
        second[name].append(look(start, policy))
lesson.number("fresh_pairs", " and ".join(f"{count:,}" for count in fresh_counts))

# %%
figure, (left, right) = lesson.panels(2, height=3.8, sharey=True)
colours = [COLOUR["DPO"], COLOUR["DPO"], COLOURS[2], COLOURS[3], COLOUR["reward model + PPO"], COLOUR["reward model + PPO"],
           COLOURS[4]]
dots(left, second, "true_reward", colours)
dots(right, second, "kl", colours)
left.set(xlabel="true reward (dots: seeds; bar: mean)", title="What it is worth")
right.set(xlabel="KL from SFT (nats a response)", title="How far it went")
lesson.table("second", ["", "true reward", "KL", "share of the possible gain", "right answers"],
             [[" ".join(name.split()), *(spread([run[key] for run in of], ".2f")
                                         for key in ("true_reward", "kl", "share", "right_share"))]
              for name, of in second.items()])
best = max(second, key=lambda name: mean(run["true_reward"] for run in second[name]))
lesson.figure("second_half", figure, "What the second half of the budget buys. Highest mean true reward: "
              f"{' '.join(best.split())} ({mean(run['true_reward'] for run in second[best]):.2f}).")
for short, name in zip(("dpo_half", "dpo_all", "fresh", "dpo_ppo", "ppo_half", "ppo_all", "ppo_dpo"), second, strict=True):
    for key in ("true_reward", "kl", "share"):
        lesson.number(f"{key}_{short}_second", [run[key] for run in second[name]], ".2f")

# %% [markdown]
# ## The two pipelines

# %%
figure, (left, right) = lesson.panels(2)
figure.set_size_inches(9.6, 3.3)
draw_pipeline(left, {
    "pairs": Box(0, 1.3, "preference\npairs", "data"), "policy": Box(1.2, 0.5, "policy", "trained"),
    "reference": Box(1.2, 2.1, "reference\n(SFT)", "frozen"), "loss": Box(2.7, 1.3, "DPO loss", "data"),
}, [("pairs", "policy", ""), ("pairs", "reference", ""), ("policy", "loss", "log-probs"),
    ("reference", "loss", "log-probs")])
left.set_title("DPO: two models, one trained")
draw_pipeline(right, {
    "prompts": Box(0, 2.6, "prompts,\nno labels", "data"), "policy": Box(0, 1.3, "policy", "trained"),
    "reference": Box(1.5, 0, "reference\n(SFT)", "frozen"), "reward": Box(1.5, 1.3, "reward\nmodel", "frozen"),
    "value": Box(1.5, 2.6, "value", "trained"), "loss": Box(3, 1.3, "advantage,\nPPO loss", "data"),
}, [("prompts", "policy", "asks"), ("policy", "reference", ""), ("policy", "reward", "answers"), ("policy", "value", ""),
    ("reference", "loss", "KL"), ("reward", "loss", "score"), ("value", "loss", "baseline")])
right.set_title("RLHF: four models, two trained")
lesson.figure("pipelines", figure, f"DPO holds 2 models ({megabytes(*held['DPO']):.2f} MB of weights here), PPO holds 4 "
              f"({megabytes(*held['reward model + PPO']):.2f} MB), after a reward model has been trained.")
lesson.done()
