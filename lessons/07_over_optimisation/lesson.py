# %% [markdown]
# # 7. Reward hacking and over-optimisation
# The article is README.md beside this file. Run this from the shell (`python -m lessons 07`) or cell by cell.

# %%
import copy
import math
from statistics import mean, stdev

import numpy as np
import torch

from dpo.train import dpo_train
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.limit import BETAS, Frontier, best_of_n_kl
from lessons.start import DPO, LONGEST_ANSWER, PPO, REWARD, SFT, SIZE, kept, starting_point
from minigpt import generate
from minigpt.disk import write_json
from minigpt.evaluation import kl_to_reference, sample_responses
from minigpt.plots import COLOURS
from ppo.train import ppo_training
from reward.evaluate import evaluate_reward_accuracy, score
from reward.model import RewardModel
from reward.start import center
from reward.train import train_reward_model

lesson = Lesson("07_over_optimisation")
seeds = lesson.pick((0, 1, 2), (0, 1))
pairs = lesson.pick(1000, 32)            # of a project that could afford few
episodes, watch_every = lesson.pick((24, 3), (2, 1))
dpo_epochs = lesson.pick(3, 1)           # over the few pairs
betas = lesson.pick((0.3, 0.5, 1.0, 2.0, 4.0, 8.0), (0.5, 2.0))
kl_coeffs = lesson.pick((0.02, 0.1, 0.3, 1.0, 3.0), (0.02, 1.0))
ns = lesson.pick((1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 4, 16))
pool_size, samples = lesson.pick((512, 16), (16, 2))      # answers to each held-out prompt: of the pool, of a policy
longest, batch_size = lesson.pick((LONGEST_ANSWER, 128), (8, 8))
LEAST, FIRM = kl_coeffs[0], 1.0          # prices of a nat: PPO let loose, PPO held
watched = range(0, episodes + 1, watch_every)

# %% [markdown]
# ## Three proxies of one true reward
# Many honest labels, few honest labels, and few labels of annotators who like long answers. The true reward is the same,
# and so are the SFT models.

# %%
PROXIES = {"many": {}, "few": {"preference_rows": pairs}, "biased": {"preference_rows": pairs, "length_bias": 4.0}}
NAMES = {"many": "8,000 pairs", "few": "1,000 pairs", "biased": "1,000 pairs, length bias"}
starts = {name: [starting_point(seed, quick=lesson.quick, **options) for seed in seeds]
          for name, options in PROXIES.items()}
lesson.number("bayes", [start.world.bayes_accuracy(start.world.heldout_preferences) for start in starts["many"]], ".2f")

# %% [markdown]
# ## The closed form costs nothing
# Many SFT answers to every held-out prompt, judged by everyone. After that each policy `ref exp(score / beta) / Z` is a
# set of weights on them.

# %%
class Pool:
    """SFT answers to every held-out prompt, P prompts with n answers each."""

    def __init__(self, start):
        self.world, self.prompts = start.world, start.world.heldout_prompts
        self.texts = [[answer.text for answer in generate(start.sft, [prompt] * pool_size, longest, seed=number)]
                      for number, prompt in enumerate(self.prompts)]

    def each(self, value):
        """value(prompt, text) of every answer: (P, n)."""
        rows = [[value(prompt, text) for text in texts] for prompt, texts in zip(self.prompts, self.texts, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)

    def scores(self, model):
        """The model's reward of every answer, (P, n).  The same text is scored once, so that it always ties with itself."""
        found = {}
        for prompt, texts in zip(self.prompts, self.texts, strict=True):
            different = sorted(set(texts))
            rewards = score(model, [prompt] * len(different), different).tolist()
            found |= {(prompt, text): reward for text, reward in zip(different, rewards, strict=True)}
        return self.each(lambda prompt, text: found[prompt, text])


def tilt(scores, betas=BETAS):
    """Log of what each answer of a pool weighs under ref exp(score / beta) / Z: (betas, P, n)."""
    return (scores / betas[:, None, None]).log_softmax(-1)


def kl_of(log_weights):
    """From the pool itself, in nats, the mean over prompts: (betas,)."""
    return (log_weights.exp() * (log_weights + math.log(log_weights.shape[-1]))).sum(-1).mean(-1)


def mean_of(log_weights, values):
    return (log_weights.exp() * values).sum(-1).mean(-1)


def covariance(log_weights, a, b):
    """Within each prompt, then the mean over prompts: (betas,)."""
    weights = log_weights.exp()
    return ((weights * a * b).sum(-1) - (weights * a).sum(-1) * (weights * b).sum(-1)).mean(-1)


def best_of(scores, values, n):
    """Mean over prompts of a value of the best-scored of n answers (ties: any of them), and the KL of choosing so."""
    total = 0.0
    for s, v in zip(scores, values, strict=True):
        _, group, counts = s.unique(return_inverse=True, return_counts=True)
        up_to = counts.double().cumsum(0) / len(s)
        chosen = up_to**n - (up_to - counts / len(s)).clamp_min(0) ** n      # of each group of answers with one score
        of_group = torch.zeros(len(counts), dtype=torch.float64).index_add(0, group, v) / counts
        total += float((chosen * of_group).sum())
    return total / len(scores), mean(best_of_n_kl(s, n) for s in scores)


# %%
pools = [Pool(start) for start in starts["many"]]  # the SFT models are the same for all three
true = [pool.each(pool.world.true_reward) for pool in pools]
limits = [Frontier(values) for values in true]
sft_true = [limit.start for limit in limits]
lesson.number("sft_true", sft_true, ".2f")
lesson.number("most", [float(limit.rewards[-1]) for limit in limits], ".2f")
words = [pool.each(lambda prompt, text, world=pool.world: world.judge(prompt, text).words) for pool in pools]
right = [pool.each(lambda prompt, text, world=pool.world: world.judge(prompt, text).right) for pool in pools]


def share_of(limit, reward, kl):
    """The gain over SFT, of the most that was possible at this KL; 0 where nothing was possible."""
    share = limit.share_of_gain(reward, kl)
    return 0.0 if math.isnan(share) else share


def curve(s, t, w, r, limit):
    """What the closed form for scores s gives in truth t, words w and right answers r, all (P, n), and numbers of it."""
    weights = tilt(s)
    kl, reward = kl_of(weights), mean_of(weights, t)
    with_truth, var_s, var_t = covariance(weights, s, t), covariance(weights, s, s), covariance(weights, t, t)
    correlation, top = with_truth / (var_s * var_t).sqrt(), int(reward.argmax())
    return {"kl": kl, "true": reward, "proxy": mean_of(weights, s), "words": mean_of(weights, w),
            "right": mean_of(weights, r), "correlation": correlation, "rho": float(correlation[0]),
            "slope": float((2 * var_t[0]).sqrt() * correlation[0]),
            "slope_seen": float((reward[0] - limit.start) / kl[0].sqrt()),
            "peak": float(reward[top]), "peak_kl": float(kl[top]), "end": float(reward[-1]),
            "share": share_of(limit, float(reward[top]), float(kl[top]))}


scores, curves, rows = {}, {}, []
for name, group in starts.items():
    scores[name] = [pool.scores(start.reward) for pool, start in zip(pools, group, strict=True)]
    each = [curve(*of_seed) for of_seed in zip(scores[name], true, words, right, limits, strict=True)]
    found = curves[name] = {key: [of_seed[key] for of_seed in each] for key in each[0]}  # a list over seeds
    accuracy = [evaluate_reward_accuracy(start.reward, start.world.heldout_preferences) for start in group]
    lesson.number(f"accuracy_{name}", accuracy, ".2f")
    for key in ("rho", "peak", "peak_kl", "end", "share"):
        lesson.number(f"{key}_{name}", found[key], ".2f")
    lesson.number(f"end_right_{name}", [float(value[-1]) for value in found["right"]], ".2f")
    lesson.number(f"end_words_{name}", [float(value[-1]) for value in found["words"]], ".1f")
    rows.append([NAMES[name], spread(accuracy, ".2f"),
                 *(spread(found[key], ".2f") for key in ("rho", "slope", "slope_seen")),
                 f"{spread(found['peak'], '.2f')} at {mean(found['peak_kl']):.1f}", spread(found["end"], ".2f")])
lesson.number("sft_right", [float(value.mean()) for value in right], ".2f")
lesson.number("sft_words", [float(value.mean()) for value in words], ".1f")
lesson.table("proxies", ["proxy", "held-out accuracy", "correlation with the truth", "slope at 0, predicted",
                         "slope at 0, seen", "best true reward, at KL", "true reward at the far end"], rows)


# %% [markdown]
# ### What a perfect optimiser of each proxy gets

# %%
def average(values):
    """Mean and standard deviation over seeds, at each beta or step."""
    values = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])
    return values.mean(0), values.std(0)


def over_kl(axis, ylabel, most, ticks):
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set(xlabel="KL from SFT (nats per response, root scale)", ylabel=ylabel, xlim=(0, most))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


LOOKS = {"many": COLOURS[0], "few": COLOURS[1], "biased": COLOURS[3]}
limit_kl, _ = average([limit.kls for limit in limits])
limit_true, _ = average([limit.rewards for limit in limits])
figure, axes = lesson.panels(2, height=3.8)
axes[0].plot(limit_kl, limit_true, "k--", label="the truth (the limit)")
for name, colour in LOOKS.items():
    kl, (reward, deviation) = average(curves[name]["kl"])[0], average(curves[name]["true"])
    axes[0].plot(kl, reward, color=colour, label=NAMES[name])
    axes[0].fill_between(kl, reward - deviation, reward + deviation, color=colour, alpha=0.15, linewidth=0)
    seen = kl < 4
    axes[1].plot(kl[seen], average(curves[name]["correlation"])[0][seen], color=colour, label=NAMES[name])
axes[1].axhline(0, color="grey", linestyle=":", linewidth=1)
over_kl(axes[0], "true reward", 6.2, (0.1, 0.5, 1, 2, 3, 4, 6))
over_kl(axes[1], "correlation of proxy and truth", 4.0, (0.1, 0.5, 1, 2, 3, 4))
axes[0].set_title("The perfect optimiser of ...")
axes[1].set_title("Does the proxy still know good from bad?")
axes[0].legend(loc="lower right")
axes[1].legend(loc="lower left")
lesson.figure("proxies", figure, f"Left: one perfect optimiser, four things to optimise (mean of {len(seeds)} seeds; bands: "
              "one standard deviation). Right: among the answers that the tilted policy gives, proxy and truth correlate "
              + ", ".join(f"{mean(curves[name]['rho']):.2f} ({NAMES[name]})" for name in PROXIES)
              + " at the start, and less the harder the proxy is optimised.")

# %% [markdown]
# ## Best-of-n, PPO and DPO against the proxy of few pairs
# Every policy is measured alike: sampled answers to held-out prompts, scored by the proxy and by the world.

# %%
def look(start, policy, judges, seed=0):
    """What a policy says to the held-out prompts; judges: reward models by name."""
    prompts, answers = sample_responses(policy, start.world.heldout_prompts, samples, longest, seed)
    texts = [answer.text for answer in answers]
    verdicts = [start.world.judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return {"kl": kl_to_reference(policy, start.sft, prompts, answers)["kl_nats_per_response"],
            "true": mean(map(start.world.true_reward, prompts, texts)),
            **{name: float(score(model, prompts, texts).mean()) for name, model in judges.items()},
            "words": mean(verdict.words for verdict in verdicts), "right": mean(verdict.right for verdict in verdicts),
            "polite": mean(verdict.tone == "polite" for verdict in verdicts),
            "evasive": mean(verdict.evasive for verdict in verdicts),
            "obedient": mean(verdict.obedient for verdict in verdicts),
            "unknown": mean(verdict.unknown_words for verdict in verdicts)}


def by_ppo(start, proxy, kl_coeff, copies=None, **options):
    """A policy trained against a proxy, and the KL of every episode; copies: a list, for the policy along the way."""
    policy, episode = start.fresh_policy(), iter(range(1, episodes + 1))

    def measure(prompts, texts):
        if next(episode) % watch_every == 0 and copies is not None:
            copies.append(copy.deepcopy(policy).eval())
        return {}

    recipe = {**PPO, "num_episodes": episodes, "batch_size": batch_size, "max_new_tokens": longest, "seed": start.seed,
              "final_lr": 1.0, "kl_coeff": kl_coeff, **options}  # a constant rate: the schedule stops nothing
    _, _, kls = ppo_training(policy, start.sft, proxy, start.world.prompts, measure=measure, **recipe)
    return policy, kls


def by_dpo(start, beta):
    policy = start.fresh_policy()
    recipe = {**DPO, "beta": beta, "num_epochs": dpo_epochs, "seed": start.seed}
    dpo_train(policy, start.sft, start.world.preferences, **recipe)
    return policy


def proxy_from(start, rows, seed):
    """One more reward model, made like that of `starting_point`: from these pairs, with this seed."""
    def train():
        torch.manual_seed(seed)
        model, _, _ = train_reward_model(RewardModel.from_policy(start.sft), rows, seed=seed, **REWARD)
        prompts, answers = sample_responses(start.sft, start.world.prompts, 4, longest, seed)
        center(model, prompts, [answer.ids for answer in answers])
        return model

    return kept(train, "proxy", rows, start.world.sft_rows, SIZE, SFT, REWARD, start.seed, seed)


# A second reward model from pairs that the first has not seen: a judge who was not trained on.
others = [proxy_from(start, many.world.preferences[:pairs], 1000 + start.seed)
          for start, many in zip(starts["few"], starts["many"], strict=True)]
lesson.number("accuracy_other", [evaluate_reward_accuracy(model, start.world.heldout_preferences)
                                 for model, start in zip(others, starts["few"], strict=True)], ".2f")

# %%
runs, along, checkpoints, hacked, kls_along = [], [], [], [], {"loose": [], "firm": [], "target": []}


def keep(method, strength, start, seen):
    runs.append({"method": method, "strength": strength, "seed": start.seed, "kl": seen["kl"],
                 "true_reward": seen["true"], "proxy_reward": seen["proxy"]})


for start, other, s, t in zip(starts["few"], others, scores["few"], true, strict=True):
    judges = {"proxy": start.reward, "other": other}
    for n in ns:
        reward, kl = best_of(s, t, n)
        keep("best of n", n, start, {"kl": kl, "true": reward, "proxy": best_of(s, s, n)[0]})
    for beta in betas:
        keep("DPO", beta, start, look(start, by_dpo(start, beta), judges))
    for kl_coeff in kl_coeffs:
        copies = []
        policy, kls = by_ppo(start, start.reward, kl_coeff, copies)
        seen = look(start, policy, judges)
        keep("PPO", kl_coeff, start, seen)
        if kl_coeff == LEAST:
            checkpoints.append([start.sft, *copies])
            along.append([look(start, each, judges) for each in checkpoints[-1]])
            hacked.append(seen)
            kls_along["loose"].append(kls)
        if kl_coeff == FIRM:
            kls_along["firm"].append(kls)


def of_runs(method, strength, key):
    return [run[key] for run in runs if run["method"] == method and run["strength"] == strength]


STRENGTHS = {"best of n": ns, "DPO": betas, "PPO": kl_coeffs}
rows = []
for method, strengths in STRENGTHS.items():
    for strength in strengths:
        cells = [of_runs(method, strength, key) for key in ("kl", "proxy_reward", "true_reward")]
        rows.append([method, f"{strength:g}", *(spread(cell, ".2f") for cell in cells)])
lesson.table("runs", ["method", "n, beta or kl_coeff", "KL", "proxy reward", "true reward"], rows)
best, hardest = {}, {"best of n": ns[-1], "DPO": betas[0], "PPO": kl_coeffs[0]}
for method, strengths in STRENGTHS.items():
    best[method] = max(strengths, key=lambda strength: mean(of_runs(method, strength, "true_reward")))
    key = method.replace(" ", "_").lower()
    for where, strength in (("top", best[method]), ("last", hardest[method])):
        lesson.number(f"{key}_{where}", f"{strength:g}")
        for what in ("true_reward", "proxy_reward", "kl"):
            lesson.number(f"{key}_{where}_{what}", of_runs(method, strength, what), ".2f")
lesson.number("most_n", str(ns[-1]))
lesson.number("bon_kl_formula", math.log(ns[-1]) - (ns[-1] - 1) / ns[-1], ".2f")
lesson.number("bon_kl_ties", of_runs("best of n", ns[-1], "kl"), ".2f")

# %%
COLOUR_OF = {"best of n": COLOURS[2], "DPO": COLOURS[0], "PPO": COLOURS[1]}
MARKERS = {"best of n": "s", "DPO": "o", "PPO": "v"}
figure, axes = lesson.panels(2, height=4.2)
few_kl = average(curves["few"]["kl"])[0]
furthest = 1.1 * max(mean(of_runs(method, strength, "kl")) for method, strength in hardest.items())
axes[0].plot([*limit_kl.tolist(), furthest], [*limit_true.tolist(), float(limit_true[-1])], "k--", linewidth=1.4)
for axis, key in zip(axes, ("true", "proxy"), strict=True):
    axis.plot(few_kl, average(curves["few"][key])[0], color="#777777", linestyle="-.", linewidth=1.4)
    for method, strengths in STRENGTHS.items():
        kls = [mean(of_runs(method, strength, "kl")) for strength in strengths]
        rewards = [of_runs(method, strength, f"{key}_reward") for strength in strengths]
        axis.errorbar(kls, list(map(mean, rewards)), yerr=list(map(stdev, rewards)), color=COLOUR_OF[method],
                      marker=MARKERS[method], markersize=4.5, linewidth=1.2, elinewidth=0.8, label=method)
    over_kl(axis, f"{key} reward", furthest, [tick for tick in (0.25, 1, 2, 4, 8, 16, 24) if tick < furthest])
axes[0].set(title="What we want", ylim=(min(0, axes[0].get_ylim()[0]), None))
axes[1].set_title("What we optimise")
axes[1].plot([], [], color="#777777", linestyle="-.", linewidth=1.4, label="closed form, tilted by the proxy")
axes[1].plot([], [], "k--", linewidth=1.4, label="closed form, tilted by the truth")
axes[1].legend(loc="lower right", fontsize=7.5)
found = [f"{method} {mean(of_runs(method, hardest[method], 'true_reward')):.2f} against "
         f"{mean(of_runs(method, best[method], 'true_reward')):.2f}" for method in STRENGTHS]
lesson.figure("hump", figure, f"Proxy of {pairs:,} pairs, mean and standard deviation of {len(seeds)} seeds. True reward at "
              f"the hardest setting against the best of each sweep: {'; '.join(found)}.")

# %% [markdown]
# ## Do we see the square-root law of Gao et al.?
# Their two forms, with d the root of the KL: best-of-n `d (a - b d)`, RL `d (a - b log d)`. We fit both to each curve.

# %%
def fit(d, gain, log):
    """Least squares of gain = d (a - b d) or d (a - b log d): a, b and the share of the variance explained."""
    d, gain = np.asarray(d), np.asarray(gain)
    columns = np.stack([d, -d * (np.log(d) if log else d)], 1)
    (a, b), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    left = gain - columns @ np.array([a, b])
    variance = ((gain - gain.mean()) ** 2).sum()
    return a, b, 1 - (left**2).sum() / variance if variance > 0 else math.nan  # all gains alike: nothing to explain


def path_of(method):
    """KL and true reward, means over seeds, of each strength of a method."""
    return [(mean(of_runs(method, strength, "kl")), mean(of_runs(method, strength, "true_reward")))
            for strength in STRENGTHS[method] if strength != 1 or method != "best of n"]


trained = f"PPO at {LEAST:g}, along training"
closed = zip(few_kl.tolist(), average(curves["few"]["true"])[0].tolist(), strict=True)
paths = {"closed form": [point for point in closed if point[0] > 0.01],
         "best of n": path_of("best of n"),
         trained: [(mean(seen["kl"] for seen in step), mean(seen["true"] for seen in step))
                   for step in list(zip(*along, strict=True))[1:]],
         "PPO, all prices": path_of("PPO"), "DPO, all betas": path_of("DPO")}
rows, fits, of_path = [], {}, {}
for name, path in paths.items():
    d, gain = of_path[name] = [math.sqrt(kl) for kl, _ in path], [reward - mean(sft_true) for _, reward in path]
    fits[name] = fit(d, gain, log=False), fit(d, gain, log=True)
    rows.append([name, f"{min(d)**2:.1f} to {max(d)**2:.1f}", *(f"{value:.2f}" for found in fits[name] for value in found)])
for key, name in (("bon", "best of n"), ("ppo", trained), ("prices", "PPO, all prices"), ("dpo", "DPO, all betas")):
    for form, (_, _, explained) in zip(("d", "log"), fits[name], strict=True):
        lesson.number(f"r2_{key}_{form}", explained, ".2f")
lesson.table("gao", ["curve", "KL", "a", "b", "R² of d (a - b d)", "a (log)", "b (log)", "R² of d (a - b log d)"], rows)

figure, axes = lesson.panels(2, height=3.4)
for axis, name, colour in zip(axes, ("best of n", trained), (COLOURS[2], COLOURS[1]), strict=True):
    d, gain = of_path[name]
    axis.plot(d, gain, "o", color=colour, label="ours")
    line = np.linspace(0.05, max(d), 80)
    for (a, b, _), bend, style, text in zip(fits[name], (line, np.log(line)), ("-", "--"),
                                            ("d (a - b d)", "d (a - b log d)"), strict=True):
        axis.plot(line, line * (a - b * bend), style, color="#444444", linewidth=1.2, label=text)
    axis.set(xlabel="d, the root of the KL", ylabel="gain in true reward over SFT", title=name)
    axis.legend(loc="lower center")
found = [f"{name} {fits[name][0][2]:.2f} and {fits[name][1][2]:.2f}" for name in ("best of n", trained)]
lesson.figure("gao", figure, "Gao et al.'s two forms, fitted to our curves. R² of the quadratic and of the logarithmic: "
              + "; ".join(found) + ".")

# %% [markdown]
# ## What is hacked?

# %%
biased = []
for start in starts["biased"]:
    policy, _ = by_ppo(start, start.reward, LEAST)
    biased.append((look(start, policy, {"proxy": start.reward}), policy))
sft_seen = [run[0] for run in along]
MEASURES = {"words": ("words", ".1f"), "right": ("right", ".2f"), "polite": ("polite", ".2f"), "evasive": ("evasive", ".2f"),
            "obedient": ("does as asked", ".2f"), "unknown": ("words that do not exist", ".2f"),
            "true": ("true reward", ".2f"), "kl": ("KL", ".1f")}
three = {"sft": ("SFT", sft_seen), "few": (f"PPO on {NAMES['few']}", hacked),
         "biased": (f"PPO on {NAMES['biased']}", [seen for seen, _ in biased])}
rows = []
for short, (name, group) in three.items():
    texts = {key: spread([seen[key] for seen in group], form) for key, (_, form) in MEASURES.items()}
    rows.append([name, *texts.values()])
    for key, text in texts.items():
        lesson.number(f"ppo_{short}_{key}", text)
lesson.table("hacked", ["policy", *(name for name, _ in MEASURES.values())], rows)

# %%
world, rows = pools[0].world, []
speakers = [("SFT", starts["few"][0].sft, starts["few"][0].reward),
            (f"PPO on {NAMES['few']}", checkpoints[0][-1], starts["few"][0].reward),
            (f"PPO on {NAMES['biased']}", biased[0][1], starts["biased"][0].reward)]
for begin in ("What", "In one word", "In a sentence"):
    prompt = next((prompt for prompt in world.heldout_prompts if prompt.startswith(begin)), world.heldout_prompts[0])
    for name, policy, proxy in speakers:
        text = generate(policy, [prompt], longest, greedy=True)[0].text
        rows.append([prompt, name, text.replace("`", "'"), f"{float(score(proxy, [prompt], [text])):+.1f}",
                     f"{world.true_reward(prompt, text):+.1f}"])
lesson.table("samples", ["prompt", "policy", "most likely answer", "its proxy", "its true reward"], rows)

figure, axes = lesson.panels(3, height=3.2)
for axis, key, ylabel in zip(axes, ("words", "right", "proxy"),
                             ("words per answer", "share of right answers", "proxy reward"), strict=True):
    for name, colour in LOOKS.items():
        kl, (value, deviation) = average(curves[name]["kl"])[0], average(curves[name][key])
        axis.plot(kl, value, color=colour, label=NAMES[name])
        axis.fill_between(kl, value - deviation, value + deviation, color=colour, alpha=0.15, linewidth=0)
    over_kl(axis, ylabel, 6.2, (0.5, 1, 2, 3, 4, 6))
axes[0].legend(loc="upper left")
found = [f"{NAMES[name]}: {mean(float(w[-1]) for w in curves[name]['words']):.1f} words, "
         f"{mean(float(r[-1]) for r in curves[name]['right']):.2f} right" for name in PROXIES]
lesson.figure("hacked", figure, "What the perfect optimiser of each proxy does with its KL (closed form). At the far end: "
              + "; ".join(found) + ".")

# %% [markdown]
# ## Cures
# Ensembles first: three reward models, the same pairs, other seeds.

# %%
class Ensemble(RewardModel):
    """Several reward models that speak as one.  PPO takes it wherever it takes a reward model."""

    def __init__(self, members, combine):
        super().__init__(**members[0].settings)
        self.load_state_dict(members[0].state_dict())  # PPO's value model starts from these weights
        self.members, self.combine = tuple(members), combine

    def rewards(self, batch):
        return self.combine(torch.stack([member.rewards(batch) for member in self.members]))


COMBINE = {"mean": lambda s: s.mean(0), "minimum": lambda s: s.amin(0), "mean - spread": lambda s: s.mean(0) - s.std(0)}
members = [[start.reward, *(proxy_from(start, start.world.preferences, 100 * k + start.seed) for k in (1, 2))]
           for start in starts["few"]]
by_member = [torch.stack([pool.scores(model) for model in group]) for pool, group in zip(pools, members, strict=True)]
rows = []
for name, combine in {"one of them": lambda s: s[0], **COMBINE}.items():
    combined = [combine(group) for group in by_member]
    rewards = [mean_of(tilt(s), t) for s, t in zip(combined, true, strict=True)]
    far = [best_of(s, t, ns[-1])[0] for s, t in zip(combined, true, strict=True)]
    cells = {"top": [float(r.max()) for r in rewards], "end": [float(r[-1]) for r in rewards], "bon": far}
    rows.append([name, *(spread(cell, ".2f") for cell in cells.values())])
    for key, cell in cells.items():
        lesson.number(f"ensemble_{name.split()[-1]}_{key}", cell, ".2f")
lesson.table("ensembles", ["proxy", "closed form, best", "closed form, far end", f"best of {ns[-1]}"], rows)


def shared(models, t):
    """How much of the error of two reward models is the same: the correlation of what each scores beside the truth."""
    left = [s - s.mean(-1, keepdim=True) - covariance_of(s, t) * (t - t.mean(-1, keepdim=True)) for s in models[:2]]
    return float(torch.corrcoef(torch.stack([part.flatten() for part in left]))[0, 1])


def covariance_of(s, t):
    """The slope of the scores over the truth, within prompts: least squares."""
    s, t = s - s.mean(-1, keepdim=True), t - t.mean(-1, keepdim=True)
    return (s * t).sum() / (t * t).sum()


lesson.number("shared_errors", [shared(group, t) for group, t in zip(by_member, true, strict=True)], ".2f")
strangers = [torch.stack([s, pool.scores(other)]) for s, pool, other in zip(scores["few"], pools, others, strict=True)]
lesson.number("shared_errors_other", [shared(group, t) for group, t in zip(strangers, true, strict=True)], ".2f")

# %% [markdown]
# Then every cure on the same PPO run: the proxy of few pairs and a price that is far too low.

# %%
responses = len(starts["few"][0].world.prompts)  # in an episode
cures = {f"nothing: kl_coeff {LEAST:g}": [(seen["kl"], seen["true"]) for seen in hacked]}
for judge, text in (("true", "fresh true labels"), ("other", "another reward model")):
    name, stops = f"stop early, by {text}", []
    cures[name] = []
    for start, trajectory, copies in zip(starts["few"], along, checkpoints, strict=True):
        judged = [seen[judge] for seen in trajectory]
        number = judged.index(max(judged))
        seen = look(start, copies[number], {}, seed=77)  # on fresh samples: the first have chosen
        cures[name].append((seen["kl"], seen["true"]))
        stops.append(watched[number])
    lesson.number(f"stop_{judge}", ", ".join(map(str, stops)))
for method, strength, name in (("PPO", FIRM, f"kl_coeff {FIRM:g}"), ("best of n", 16, "best of 16, no training")):
    cures[name] = list(zip(of_runs(method, strength, "kl"), of_runs(method, strength, "true_reward"), strict=True))
single, many = ([start.reward for start in starts[name]] for name in ("few", "many"))
least_trusting = [Ensemble(group, COMBINE["minimum"]) for group in members]
trials = {"rate falling to 0": (single, {"final_lr": 0.0}),
          "target_kl 1": (single, {"target_kl": 1.0, "kl_horizon": responses // 2}),
          "minimum of 3": (least_trusting, {}), NAMES["many"]: (many, {}),
          f"minimum of 3, kl_coeff {FIRM:g}": (least_trusting, {"kl_coeff": FIRM}),
          f"{NAMES['many']}, kl_coeff {FIRM:g}": (many, {"kl_coeff": FIRM})}
for name, (proxies, options) in trials.items():
    cures[name] = []
    for start, proxy in zip(starts["few"], proxies, strict=True):
        policy, kls = by_ppo(start, proxy, **{"kl_coeff": LEAST, **options})
        seen = look(start, policy, {})
        cures[name].append((seen["kl"], seen["true"]))
        if "target_kl" in options:
            kls_along["target"].append(kls)
rows = []
for number, (name, group) in enumerate(cures.items()):
    kls, rewards = zip(*group, strict=True)
    shares = [share_of(limit, reward, kl) for limit, kl, reward in zip(limits, kls, rewards, strict=True)]
    rows.append([name, *(spread(values, ".2f") for values in (kls, rewards, shares))])
    lesson.number(f"cure_{number}", rewards, ".2f")
    lesson.number(f"cure_kl_{number}", kls, ".2f")
lesson.table("cures", ["cure", "KL", "true reward", "share of the possible gain at its KL"], rows)

# %%
figure, axes = lesson.panels(2, height=3.6)
for key, text, colour in (("proxy", "proxy, trained on", COLOURS[1]), ("other", "another reward model", COLOURS[3]),
                          ("true", "true reward", "black")):
    value, deviation = average([[seen[key] for seen in run] for run in along])
    axes[0].plot(watched, value, color=colour, marker="o", markersize=3, label=text)
    axes[0].fill_between(watched, value - deviation, value + deviation, color=colour, alpha=0.15, linewidth=0)
axes[0].set(xlabel="episode", ylabel="reward of held-out answers", title=f"PPO on {NAMES['few']}, kl_coeff {LEAST:g}")
axes[0].legend(loc="upper left")
for key, text, colour in (("loose", f"kl_coeff {LEAST:g}", COLOURS[1]),
                          ("target", f"target_kl 1, from {LEAST:g}", COLOURS[2]),
                          ("firm", f"kl_coeff {FIRM:g}", COLOURS[0])):
    value, deviation = average(kls_along[key])
    numbers = range(2, len(value) + 1)  # the first rollout is the SFT model's own: KL 0
    axes[1].plot(numbers, value[1:], color=colour, label=text)
    axes[1].fill_between(numbers, (value - deviation)[1:], (value + deviation)[1:], color=colour, alpha=0.15, linewidth=0)
axes[1].axhline(1, color="grey", linestyle=":", linewidth=1)
axes[1].set(xlabel="episode", ylabel="KL (nats per response)", title="How far it is let to go", yscale="log",
            ylim=(0.2, None))
axes[1].set_yticks((0.25, 0.5, 1, 2, 4, 8, 16), ("0.25", "0.5", "1", "2", "4", "8", "16"))
axes[1].minorticks_off()
axes[1].legend(loc="upper left")
tops = [max(zip(run, watched, strict=True), key=lambda pair: pair[0]["true"])[1] for run in along]
lesson.figure("along", figure, f"Left: the proxy ends at {mean(run[-1]['proxy'] for run in along):.1f}, the true reward at "
              f"{mean(run[-1]['true'] for run in along):.2f}; it was highest after episode {', '.join(map(str, tops))} of "
              f"{episodes} (seed by seed). Right: what a price and what a target do to the KL.")

# %%
figure, axis = lesson.panels(height=3.8)
for number, group in enumerate(cures.values()):
    rewards = [reward for _, reward in group]
    axis.plot(rewards, [number] * len(group), "o", color="#bbbbbb", markersize=4)
    axis.errorbar(mean(rewards), number, xerr=stdev(rewards), fmt="s", color=COLOURS[0 if number else 1], markersize=5,
                  capsize=3)
for value, style, text in ((mean(sft_true), ":", "SFT"), (float(limit_true[-1]), "--", "most possible")):
    axis.axvline(value, color="k", linestyle=style, linewidth=1.2)
    axis.text(value, -0.7, text, ha="center", fontsize=8, backgroundcolor="white")
axis.set_yticks(range(len(cures)), list(cures), fontsize=8)
axis.set(xlabel="true reward of held-out answers", ylim=(len(cures) - 0.4, -1.1), xlim=(None, float(limit_true[-1]) + 0.4))
means = {name: mean(reward for _, reward in group) for name, group in cures.items()}
lesson.figure("cures", figure, f"Each cure on the same PPO run: seeds as dots, mean and standard deviation. Untreated "
              f"{next(iter(means.values())):.2f}, SFT {mean(sft_true):.2f}, best ({max(means, key=means.get)}) "
              f"{max(means.values()):.2f}.")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=3.4)
draw_pipeline(axis, {
    "prompts": Box(0, 0, "prompts", "data"), "policy": Box(1, 0, "policy", "trained"),
    "answers": Box(2, 0, "answers", "data"),
    "truth": Box(3, 0, "true reward", "data"), "reference": Box(0, 1, "SFT model\n(reference)", "frozen"),
    "value": Box(1, 1, "value model", "trained"), "proxy": Box(2, 1, "reward model\n(the proxy)", "frozen"),
    "labels": Box(3, 1, "1,000 labels", "data"),
}, [("prompts", "policy", ""), ("policy", "answers", "says"), ("answers", "truth", "measured"),
    ("reference", "policy", "KL price"), ("value", "policy", "baseline"), ("answers", "proxy", "read"),
    ("proxy", "policy", "score"), ("truth", "labels", "by pairs"), ("labels", "proxy", "taught")])
lesson.figure("pipeline", figure, "PPO holds four models, two of them frozen. The true reward reaches the policy only "
              "through labels, and the proxy knows nothing but those labels.")


def points(kls, rewards):
    """Every fourth point of a closed form, the mean over seeds."""
    kl, reward = average(kls)[0], average(rewards)[0]
    return {"kl": [round(float(x), 4) for x in kl[::4]], "true_reward": [round(float(x), 4) for x in reward[::4]],
            "beta": [round(float(x), 4) for x in BETAS[::4]]}


lesson.folder.mkdir(parents=True, exist_ok=True)
write_json(lesson.folder / "runs.json", {
    "runs": [{key: round(value, 4) if isinstance(value, float) else value for key, value in run.items()} for run in runs],
    "limit": points([limit.kls for limit in limits], [limit.rewards for limit in limits]),
    "proxy_optimum": points(curves["few"]["kl"], curves["few"]["true"]),
})
lesson.done()
