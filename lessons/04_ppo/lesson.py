# %% [markdown]
# # 4. PPO
# The article is README.md beside this file. Run this from the shell (`python -m lessons 04`) or cell by cell.

# %%
import copy
import math
import tempfile
from functools import partial
from statistics import mean, pstdev

import torch

from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.start import LONGEST_ANSWER, PPO, starting_point
from minigpt import EOS, generate
from minigpt.batching import collate
from minigpt.evaluation import evaluate_policy
from minigpt.examples import tokenize_example
from minigpt.kl import exact_kl, kl_k1, kl_k2, kl_k3
from minigpt.logprobs import logps_of, response_logits
from minigpt.plots import COLOURS, running_mean
from minigpt.run_folder import read_history
from minigpt.sampling import sample_ids
from ppo.advantages import gae, whiten
from ppo.loss import ppo_loss
from ppo.rollout import RolloutMaker
from ppo.train import ppo_training
from reward.evaluate import score
from reward.model import RewardModel

lesson = Lesson("04_ppo")
SEEDS = lesson.pick((0, 1, 2), (0, 1))
LONGEST = lesson.pick(LONGEST_ANSWER, 8)
RECIPE = {**PPO, "max_new_tokens": LONGEST}
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in SEEDS}

# %% [markdown]
# ## Four models in memory

# %%
figure, axis = lesson.panels(height=4.6)
draw_pipeline(axis, {
    "prompts": Box(0, 1, "prompts", "data"),
    "policy": Box(1, 1, "policy", "trained"),
    "answers": Box(2, 1, "prompt + answer", "data"),
    "reference": Box(3, 0, "reference\n(the SFT model)", "frozen"),
    "reward": Box(3, 1, "reward model", "frozen"),
    "value": Box(3, 2, "value model", "trained"),
    "rewards": Box(4, 0.5, "reward of\neach token", "data"),
    "advantages": Box(4, 2, "advantages,\nreturns", "data"),
    "losses": Box(3, 3, "policy loss,\nvalue loss", "data"),
}, [("prompts", "policy", ""), ("policy", "answers", "samples"), ("answers", "reference", "log-probs"),
    ("answers", "reward", ""), ("answers", "value", ""), ("reference", "rewards", "KL"),
    ("reward", "rewards", "score"), ("rewards", "advantages", "r"), ("value", "advantages", "V"),
    ("advantages", "losses", "A, R"), ("losses", "policy", "gradient"), ("losses", "value", "gradient")])
lesson.figure("pipeline", figure, "Four models are in memory: two are trained (policy and value model), two are frozen "
              "(reference and reward model). Nothing flows into a gradient from the frozen ones.")
lesson.number("weights_policy", f"{starts[0].sft.count_parameters():,}")
lesson.number("weights_value", f"{sum(p.numel() for p in starts[0].reward.parameters()):,}")

# %% [markdown]
# ## The clipped surrogate, and where its gradient is zero

# %%
def surrogate(ratio: float, advantage: float, clip: float = 0.2) -> tuple[float, float]:
    """The objective of one token (what PPO maximises), and its slope in the ratio."""
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss, _ = ppo_loss(log_ratio, torch.zeros(1, 1), torch.full((1, 1), advantage), torch.ones(1, 1, dtype=torch.bool), clip)
    loss.backward()
    return -loss.item(), -log_ratio.grad.item() / ratio  # d/d ratio = d/d log ratio / ratio


grid = [0.4 + 0.005 * n for n in range(241)]
figure, axes = lesson.panels(2, height=3.2)
for axis, advantage, name in zip(axes, (1.0, -1.0), ("better than expected: A = +1", "worse than expected: A = -1"),
                                 strict=True):
    heights, slopes = zip(*(surrogate(ratio, advantage) for ratio in grid), strict=True)
    axis.plot(grid, [ratio * advantage for ratio in grid], ":", color="grey", label="without clipping")
    axis.plot(grid, heights, color=COLOURS[0], label="clipped")
    axis.fill_between(grid, -1.75, 1.75, where=[slope == 0 for slope in slopes], color=COLOURS[1], alpha=0.15,
                      label="gradient is zero")
    axis.axvline(1, color="#444444", linewidth=0.8)
    axis.set(xlabel="ratio pi / pi_old of the sampled token", ylabel="objective of the token", title=name)
    axis.set_ylim((0, 1.7) if advantage > 0 else (-1.7, 0))
    axis.legend(loc="lower right" if advantage > 0 else "lower left")
slopes = {(ratio, sign): surrogate(ratio, sign)[1] for ratio in (0.7, 1.3) for sign in (1.0, -1.0)}
lesson.table("slopes", ["", "ratio 0.7", "ratio 1.3"],
             [[f"A = {sign:+.0f}", *(f"slope {slopes[ratio, sign] + 0.0:+.0f}" for ratio in (0.7, 1.3))]
              for sign in (1.0, -1.0)])
lesson.figure("clipping", figure, "A good token that is already 20 % more likely than at the rollout gains nothing by "
              "rising on (left); a bad one that is 20 % less likely gains nothing by falling on (right). A step in the "
              "wrong direction is never clipped.")

# %% [markdown]
# ## A good run: three seeds of the recipe
# The value model is made here, so that it can be looked at afterwards. Nothing else differs from plain `ppo_training`.

# %%
EPISODES = lesson.pick(60, 2)
policies, value_models, histories = {}, {}, []
for seed, start in starts.items():
    policies[seed], value_models[seed] = start.fresh_policy(), copy.deepcopy(start.reward)
    with tempfile.TemporaryDirectory() as folder:
        ppo_training(policies[seed], start.sft, start.reward, start.world.prompts,
                     value_model=value_models[seed], measure=start.world.measure, seed=seed,
                     out=folder, **{**RECIPE, "num_episodes": EPISODES})
        histories.append(read_history(folder))

# %%
lesson.number("first_ratio", [history["val/first_ratio"][0] for history in histories], ".6f")
lesson.number("first_ratio_worst", max(abs(ratio - 1) for h in histories for ratio in h["val/first_ratio"]), ".0e")
lesson.number("first_kl", [history["objective/kl_exact"][0] for history in histories], ".6f")
lesson.number("first_explained", [history["val/explained_variance"][0] for history in histories], ".2f")
lesson.number("last_explained", [mean(history["val/explained_variance"][-10:]) for history in histories], ".2f")
lesson.number("clip_fraction", [mean(history["policy/clipfrac_avg"]) for history in histories], ".3f")
lesson.number("last_kl", [mean(history["objective/kl_exact"][-10:]) for history in histories], ".2f")
lesson.number("episodes", str(EPISODES))


def show(axis, name: str, colour: str, label: str) -> None:
    """One metric of the three runs: faint lines, and their mean smoothed over five episodes."""
    runs = [history[name] for history in histories]
    for values in runs:
        axis.plot(range(1, len(values) + 1), values, color=colour, alpha=0.2, linewidth=0.8)
    means = [mean(values) for values in zip(*runs, strict=True)]
    axis.plot(range(1, len(means) + 1), running_mean(means, 5), color=colour, label=label)


figure, axes = lesson.panels(3, height=3.2)
show(axes[0], "objective/scores", COLOURS[1], "score of the reward model")
show(axes[0], "true_reward", COLOURS[2], "true reward")
axes[0].set(ylabel="mean over a rollout", title="What is maximised, and what is meant")
show(axes[1], "objective/kl_exact", COLOURS[0], "exact over the vocabulary")
show(axes[1], "objective/kl", COLOURS[4], "sampled (k1)")
axes[1].set(ylabel="nats per response", title="KL to the reference")
show(axes[2], "val/response_tokens", COLOURS[3], "tokens of a response")
show(axes[2], "val/num_eos_tokens", COLOURS[5], "responses that end (of 48)")
axes[2].set(ylabel="count", title="Length and endings", ylim=(0, None))
for axis in axes:
    axis.set_xlabel("episode")
    axis.legend(loc="best")
gap = [mean(h["true_reward"][-10:]) - mean(h["true_reward"][:1]) for h in histories]
score_gap = [mean(h["objective/scores"][-10:]) - mean(h["objective/scores"][:1]) for h in histories]
lesson.number("true_gain_rollouts", gap, ".2f")
lesson.number("score_gain_rollouts", score_gap, ".2f")
lesson.figure("goal", figure, f"Three seeds (faint) and their mean. From the first rollout to the last ten the score rose "
              f"by {spread(score_gap, '.2f')} and the true reward by {spread(gap, '.2f')}. The KL begins at exactly 0.")

figure, axes = lesson.panels(3, height=3.2)
show(axes[0], "objective/entropy", COLOURS[0], "entropy")
axes[0].set(ylabel="nats per token", title="Entropy of the next-token distribution", ylim=(0, None))
show(axes[1], "policy/clipfrac_avg", COLOURS[1], "policy: ratio clipped")
show(axes[1], "val/clipfrac_avg", COLOURS[3], "value clipped")
axes[1].set(ylabel="share of tokens", title="Clip fractions")
show(axes[2], "val/explained_variance", COLOURS[2], "explained variance")
axes[2].axhline(0, color="grey", linewidth=0.8)
axes[2].set(ylabel="share of the variance of returns", title="Value function")
for axis in axes:
    axis.set_xlabel("episode")
    axis.legend(loc="best")
first, last = (mean(h["val/explained_variance"][0] for h in histories),
               mean(mean(h["val/explained_variance"][-10:]) for h in histories))
clipped = [mean(mean(h[name][:10]) for h in histories) for name in ("policy/clipfrac_avg", "val/clipfrac_avg")]
lesson.figure("health", figure, f"The explained variance of the values begins at {first:.2f} and is {last:.2f} over the "
              f"last ten episodes. In the first ten the ratio of {clipped[0]:.1%} of the tokens was clipped, and the value "
              f"of {clipped[1]:.1%}.")

# %% [markdown]
# ## Before and after

# %%
def results(start, policy) -> dict[str, float]:
    """What a policy says to held-out prompts; beside the true reward also what the reward model thinks of it."""
    def judge(prompts, texts):
        return {"proxy": float(score(start.reward, prompts, texts).mean()), **start.world.measure(prompts, texts)}
    return evaluate_policy(policy, start.sft, start.world.heldout_prompts[:lesson.pick(None, 4)], lesson.pick(16, 1),
                           LONGEST, start.seed, judge)


before = {seed: results(start, start.sft) for seed, start in starts.items()}
after = {seed: results(start, policies[seed]) for seed, start in starts.items()}
for name in ("true_reward", "right_share", "proxy", "finished_share", "kl_nats_per_response", "response_bytes"):
    for when, figures in (("before", before), ("after", after)):
        lesson.number(f"{name}_{when}", [figures[seed][name] for seed in SEEDS], ".2f")

prompts = starts[0].world.heldout_prompts[:5]
answers = [generate(model, prompts, LONGEST, seed=3) for model in (starts[0].sft, policies[0])]
lesson.table("answers", ["prompt", "SFT", "true reward", "after PPO", "true reward"],
             [[prompt, old.text, f"{starts[0].world.true_reward(prompt, old.text):.2f}",
               new.text, f"{starts[0].world.true_reward(prompt, new.text):.2f}"]
              for prompt, old, new in zip(prompts, *answers, strict=True)])

# %% [markdown]
# ## One answer, token by token: rewards, values, advantages

# %%
@torch.no_grad()
def roll_out(start, policy, value_model, prompts, seed: int = 0):
    """A rollout on these prompts and its values (B, T), as the training loop makes them."""
    batch = collate([tokenize_example(prompt, [], policy.max_seq_len) for prompt in prompts])
    make = RolloutMaker(start.sft, start.reward, LONGEST, missing_eos_penalty=1.0)
    rollout = make(policy, batch, RECIPE["kl_coeff"], torch.Generator().manual_seed(seed))
    return rollout, value_model.values(rollout.batch)


rollout, values = roll_out(starts[0], policies[0], value_models[0], starts[0].world.heldout_prompts)
far = int(rollout.exact_kl.argsort()[-3])  # an answer that moved away from the reference, so that there is a KL to see
where = rollout.mask[far]
letters = ["EOS" if byte == EOS else chr(byte) if 32 <= byte < 127 else "?"  # a visible ASCII character
           for byte in rollout.batch.token_ids[far, where].tolist()]
places = range(len(letters))
figure, axes = lesson.panels(2, height=3.4)
axes[0].bar(places, rollout.rewards[far, where].tolist(), color=COLOURS[0], label="reward of the token")
axes[0].plot(places, values[far, where], "o-", color=COLOURS[2], markersize=3,
             label="value before the token")
axes[0].set(ylabel="units of the score", title="Reward and value")
for lam, colour in ((0.0, COLOURS[4]), (0.95, COLOURS[0]), (1.0, COLOURS[3])):
    advantages, _ = gae(rollout.rewards, values, rollout.mask, 1.0, lam)
    axes[1].plot(places, advantages[far, where], "o-", color=colour, markersize=3, label=f"lambda {lam:g}")
axes[1].axhline(0, color="grey", linewidth=0.8)
axes[1].set(ylabel="advantage (units of the score)", title="Who gets the credit")
axes[0].margins(y=0.3)  # room for the legend
for axis in axes:
    axis.set_xticks(places, letters, fontsize=max(4, min(8, 170 / len(letters))))
    axis.set_xlabel("token")
    axis.legend(loc="lower center")
lesson.figure("one_answer", figure, f"The score ({float(rollout.scores[far]):.1f}) arrives on the last token alone; on "
              "the others there is only the KL penalty. With lambda 0 a token is judged by the next value, with 1 by all "
              "that came.")
lesson.number("one_prompt", rollout.texts()[0][far].strip())
lesson.number("one_answer_text", rollout.texts()[1][far])

# %% [markdown]
# ## What lambda trades: bias against noise
# Answers of one prompt that begin with the same byte share everything that the first advantage may depend on, so its spread
# among them is noise. The mean at lambda 1 is unbiased; what another lambda has more or less than that is its bias. (Bias
# that all groups share does no harm: whitening takes it away. So what is kept is the spread of the bias over the groups.)

# %%
LAMBDAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)


def bias_and_noise(start, policy, value_model) -> tuple[list[float], list[float]]:
    """Of the first token's advantage at each lambda: the spread of its bias over groups of like beginning, and its noise
    within them."""
    copies, fewest = lesson.pick(128, 4), lesson.pick(24, 1)
    biases, noises = [[] for _ in LAMBDAS], [[] for _ in LAMBDAS]
    for prompt in start.world.heldout_prompts[:lesson.pick(10, 2)]:
        rollout, values = roll_out(start, policy, value_model, [prompt] * copies)
        every, first = torch.arange(copies), rollout.mask.int().argmax(1)
        byte = rollout.batch.token_ids[every, first]
        advantages = torch.stack([
            gae(rollout.rewards, values, rollout.mask, 1.0, lam)[0][every, first]
            for lam in LAMBDAS])
        for value in byte.unique():
            group = advantages[:, byte == value]
            if group.shape[1] >= fewest:
                for n in range(len(LAMBDAS)):
                    biases[n].append(float(group[n].mean() - group[-1].mean()))
                    noises[n].append(float(group[n].std(correction=0)))
    return [pstdev(bias) for bias in biases], [math.sqrt(mean(s * s for s in noise)) for noise in noises]


figure, axes = lesson.panels(2, height=3.2, sharey=True)
tradeoff = {}
for axis, when, title in zip(axes, ("fresh", "trained"), ("Value model before training", f"after {EPISODES} episodes"),
                             strict=True):
    measured = [bias_and_noise(start, *((start.sft, start.reward) if when == "fresh" else
                                        (policies[seed], value_models[seed]))) for seed, start in starts.items()]
    tradeoff[when] = measured
    for which, label, colour in ((0, "bias (spread over beginnings)", COLOURS[1]),
                                 (1, "noise (standard deviation)", COLOURS[0])):
        runs = [m[which] for m in measured]
        for run in runs:
            axis.plot(LAMBDAS, run, color=colour, alpha=0.25, linewidth=0.8)
        means = [mean(values) for values in zip(*runs, strict=True)]
        axis.plot(LAMBDAS, means, "o-", color=colour, markersize=4, label=label)
    axis.set(xlabel="lambda", ylabel="units of the score", title=title, ylim=(0, None))
    axis.legend(loc="best")
for when, measured in tradeoff.items():
    for lam in (0.0, 0.95, 1.0):
        n = LAMBDAS.index(lam)
        lesson.number(f"bias_{when}_{lam:g}", [m[0][n] for m in measured], ".2f")
        lesson.number(f"noise_{when}_{lam:g}", [m[1][n] for m in measured], ".2f")
lesson.figure("lambda", figure, f"The first token's advantage. Bias falls to 0 at lambda 1; it is "
              f"{mean(m[0][0] for m in tradeoff['fresh']):.1f} at lambda 0 with a fresh value model and "
              f"{mean(m[0][0] for m in tradeoff['trained']):.1f} with a trained one.")

# %% [markdown]
# ## Leave one thing out
# Each row is the recipe with one change, on every seed.

# %%
def rewards_to_go(rollout):
    """The advantage without a value function: all that comes from a token on, whitened."""
    nothing = torch.zeros_like(rollout.rewards)
    advantages, _ = gae(rollout.rewards, nothing, rollout.mask, lam=1.0)
    return whiten(advantages, rollout.mask)


def value_from_scratch(reward):
    torch.manual_seed(0)
    return RewardModel(**reward.settings)


def shifted(reward, by: float):
    """The same reward model with another zero."""
    other = copy.deepcopy(reward)
    other.head.bias.data += by
    return other


NO_CLIP = {"clip": 1e9, "max_approxkl": 1e9}
# name: (what is said of it, options, what is added to every score)
CHANGES = {
    "recipe": ("the recipe", {}, 0.0),
    "other_numbers": ("the recipe, other random numbers", {"seed": 77}, 0.0),
    "shifted": ("every score + 5 (the same on paper)", {}, 5.0),
    "no_kl": ("no KL term (beta 0)", {"kl_coeff": 0.0}, 0.0),
    "wrong_sign": ("KL with the wrong sign (beta -0.5)",
                   {"kl_estimator": lambda logps, ref_logps: ref_logps - logps}, 0.0),
    "no_clip": ("no clipping", NO_CLIP, 0.0),
    "eight": ("8 passes over a rollout", {"ppo_epochs": 8}, 0.0),
    "eight_no_clip": ("8 passes, no clipping", {"ppo_epochs": 8, **NO_CLIP}, 0.0),
    "one": ("1 pass", {"ppo_epochs": 1}, 0.0),
    "small": ("minibatches of 12 (recipe: all 48)", {"minibatch_size": 12}, 0.0),
    "not_whitened": ("advantages not whitened", {"whiten": False}, 0.0),
    "scratch": ("value model from scratch", {"value_model": value_from_scratch}, 0.0),
    "no_value": ("no value function (V = 0, lambda 1)", {"advantage": rewards_to_go}, 0.0),
    "lambda_0": ("lambda 0", {"lam": 0.0}, 0.0),
    "lambda_1": ("lambda 1", {"lam": 1.0}, 0.0),
    "gamma": ("gamma 0.95", {"gamma": 0.95}, 0.0),
    "no_eos": ("no penalty for a missing EOS", {"missing_eos_penalty": 0.0}, 0.0),
    "cold": ("sampled at temperature 0.7, scored at 1",
             {"sample": partial(sample_ids, temperature=0.7)}, 0.0),
    "fast": ("rate x 10", {"lr": 3e-3}, 0.0),
}
SHORT = lesson.pick(20, 1)
PROMPTS = lesson.pick(None, 4)
lesson.number("short_episodes", str(SHORT))


def run(start, options, shift):
    """The policy, and the score and the explained variance of each rollout."""
    if "value_model" in options:  # one for every run, since it is trained
        options = {**options, "value_model": options["value_model"](start.reward)}
    with tempfile.TemporaryDirectory() as folder:
        policy, scores, _ = ppo_training(
            start.fresh_policy(), start.sft, shifted(start.reward, shift),
            start.world.prompts[:PROMPTS], out=folder,
            **{**RECIPE, "num_episodes": SHORT, "seed": start.seed, **options})
        history = read_history(folder)
    nothing = [0.0] * SHORT  # is explained where there is no value function
    return policy, scores, history.get("val/explained_variance", nothing)


kept_policies, ablations = {}, {}
for name, (_, options, shift) in CHANGES.items():
    runs = {seed: run(start, options, shift) for seed, start in starts.items()}
    ablations[name] = [results(starts[seed], policy) for seed, (policy, _, _) in runs.items()]
    kept_policies[name] = {seed: policy for seed, (policy, _, _) in runs.items()}
    lesson.number(f"{name}_peak", [max(scores) - scores[0] for _, scores, _ in runs.values()], ".1f")
    lesson.number(f"{name}_explained_rollouts", [mean(explained[-5:]) for _, _, explained in runs.values()], ".2f")
    print(name, spread([r["true_reward"] for r in ablations[name]], ".2f"), flush=True)

# %%
def of(name: str, what: str) -> list[float]:
    return [measured[what] for measured in ablations[name]]


def against_recipe(name: str) -> list[float]:
    """True reward less that of the recipe on the same seed."""
    return [a - b for a, b in zip(of(name, "true_reward"), of("recipe", "true_reward"), strict=True)]


rows = [["the SFT model", *(spread([before[seed][what] for seed in SEEDS], ".2f") for what in ("true_reward", "proxy")), "",
         "0", *(spread([before[seed][what] for seed in SEEDS], form) for what, form in (("finished_share", ".2f"),
                                                                                  ("response_bytes", ".0f")))]]
for name, (says, *_) in CHANGES.items():
    rows.append([says, spread(of(name, "true_reward"), ".2f"), spread(of(name, "proxy"), ".2f"),
                 "" if name == "recipe" else spread(against_recipe(name), "+.2f"),
                 spread(of(name, "kl_nats_per_response"), ".1f"), spread(of(name, "finished_share"), ".2f"),
                 spread(of(name, "response_bytes"), ".0f")])
lesson.table("ablation", ["run", "true reward", "score", "true reward against the recipe", "KL (nats)", "finished", "bytes"],
             rows)
for name in CHANGES:
    lesson.number(f"{name}_true", of(name, "true_reward"), ".2f")
    lesson.number(f"{name}_proxy", of(name, "proxy"), ".2f")
    lesson.number(f"{name}_kl", of(name, "kl_nats_per_response"), ".1f")
    lesson.number(f"{name}_bytes", of(name, "response_bytes"), ".0f")
    lesson.number(f"{name}_right", of(name, "right_share"), ".2f")

NOTHING = ("other_numbers", "shifted")  # changes that change nothing but the luck of the draw
noise = max(abs(d) for name in NOTHING for d in against_recipe(name))
lesson.number("noise_floor", noise, ".2f")
order = sorted((name for name in CHANGES if name != "recipe"), key=lambda name: mean(against_recipe(name)))
figure, axis = lesson.panels(height=5.6)
axis.axvspan(-noise, noise, color="grey", alpha=0.18)
axis.axvline(0, color="grey", linewidth=0.8)
for row, name in enumerate(order):
    axis.plot(against_recipe(name), [row] * len(SEEDS), "o", color=COLOURS[0], alpha=0.6, markersize=5)
    axis.plot([mean(against_recipe(name))], [row], "|", color=COLOURS[1], markersize=14, markeredgewidth=2.5)
axis.set_yticks(range(len(order)), [CHANGES[name][0] for name in order], fontsize=8)
axis.set(xlabel="true reward less the recipe's, same seed")
outside = [name for name in order if name not in NOTHING and all(abs(d) > noise for d in against_recipe(name))]
lesson.number("outside", str(len(outside)))
lesson.number("changes", str(len(order) - len(NOTHING)))
lesson.figure("ablation", figure, f"One dot a seed, a bar for the mean, {SHORT} episodes each. Grey: as far as a run moved "
              "whose change does nothing on paper (other random numbers; every score + 5). "
              f"Of {len(order) - len(NOTHING)} real changes {len(outside)} left that band on every seed.")

# %% [markdown]
# ## Three estimators of the KL, against the exact one

# %%
@torch.no_grad()
def estimates(start, policy, reference, copies: int) -> dict[str, torch.Tensor]:
    """k1, k2, k3 and the exact KL(policy || reference) at every token of answers that the policy sampled."""
    prompts = start.world.heldout_prompts[:lesson.pick(None, 4)] * copies
    answers = generate(policy, prompts, LONGEST, seed=1)
    batch = collate([tokenize_example(prompt, [answer.ids], policy.max_seq_len)
                     for prompt, answer in zip(prompts, answers, strict=True)])
    tokens = batch.token_ids[batch.response_mask]
    logits, ref_logits = (response_logits(model, batch) for model in (policy, reference))
    both = logps_of(logits, tokens), logps_of(ref_logits, tokens)
    return {"k1": kl_k1(*both), "k2": kl_k2(*both), "k3": kl_k3(*both), "exact": exact_kl(logits, ref_logits)}


COPIES = lesson.pick(64, 2)
near = {seed: run(start, {"num_episodes": lesson.pick(3, 1)}, 0.0)[0]
        for seed, start in starts.items()}
PAIRS = {"near": ("3 episodes", near), "recipe": (f"the recipe ({SHORT})", kept_policies["recipe"]),
         "no_kl": ("no KL term", kept_policies["no_kl"]), "wrong_sign": ("wrong sign", kept_policies["wrong_sign"])}
rows, relative = [], {}
for name, (says, models) in PAIRS.items():
    measured = [estimates(start, models[seed], start.sft, COPIES) for seed, start in starts.items()]
    rows.append([says, spread([float(m["exact"].mean()) for m in measured], ".3f")])
    for k in ("k1", "k2", "k3"):
        relative[name, k] = [float(m[k].mean() / m["exact"].mean()) for m in measured]
        deviations = [float(m[k].std()) for m in measured]
        rows[-1] += [spread(relative[name, k], ".2f"), spread(deviations, ".2f")]
        lesson.number(f"sd_{k}_{name}", deviations, ".2f")
        lesson.number(f"{k}_{name}", relative[name, k], ".2f")
    rows[-1].append(spread([float((m["k1"] < 0).float().mean()) for m in measured], ".2f"))
    lesson.number(f"k1_negative_{name}", [float((m["k1"] < 0).float().mean()) for m in measured], ".2f")
    lesson.number(f"tokens_{name}", f"{min(len(m['k1']) for m in measured):,}")
lesson.table("estimators", ["policy", "exact KL a token", "k1 / exact", "sd k1", "k2 / exact", "sd k2", "k3 / exact",
                            "sd k3", "k1 below 0"], rows)
swapped = [estimates(start, start.sft, kept_policies["recipe"][seed], COPIES) for seed, start in starts.items()]
lesson.number("wrong_samples", [-float(m["k1"].mean()) for m in swapped], ".3f")
lesson.number("right_samples", [float(estimates(start, kept_policies["recipe"][seed], start.sft, COPIES)["k1"].mean())
                                for seed, start in starts.items()], ".3f")

figure, axes = lesson.panels(2, height=3.3)
for n, k in enumerate(("k1", "k2", "k3")):
    at = [place + 0.22 * (n - 1) for place in range(len(PAIRS))]
    axes[0].plot(at, [mean(relative[name, k]) for name in PAIRS], "_", color=COLOURS[n], markersize=13, markeredgewidth=2.5,
                 label=k)
    for place, name in zip(at, PAIRS, strict=True):
        axes[0].plot([place] * len(SEEDS), relative[name, k], "o", color=COLOURS[n], markersize=3, alpha=0.6)
axes[0].axhline(1, color="grey", linewidth=0.8)
axes[0].set_xticks(range(len(PAIRS)), [says for says, _ in PAIRS.values()], fontsize=8)
axes[0].set(ylabel="mean of the estimator / exact KL", title="Bias", ylim=(0, None))
axes[0].legend(loc="best")
ratios = [2 ** (0.05 * n - 3) for n in range(121)]
logs = torch.tensor(ratios).log()
for n, (k, values) in enumerate((("k1", kl_k1(logs, torch.zeros(121))), ("k2", kl_k2(logs, torch.zeros(121))),
                                 ("k3", kl_k3(logs, torch.zeros(121))))):
    axes[1].plot(ratios, values, color=COLOURS[n], label=k)
axes[1].axhline(0, color="grey", linewidth=0.8)
axes[1].set(xlabel="pi / ref of the sampled token", ylabel="estimate (nats)", xscale="log", title="The three formulas",
            ylim=(-2.2, 5))
axes[1].set_xticks([0.125, 0.25, 0.5, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
axes[1].minorticks_off()
axes[1].legend(loc="upper center")
lesson.figure("estimators", figure, "Left: k1 and k3 scatter around the exact KL, k2 is "
              f"{mean(relative['recipe', 'k2']):.2f} times it for the recipe and "
              f"{mean(relative['wrong_sign', 'k2']):.2f} times for a policy far away. Right: near a ratio of 1 k2 and "
              "k3 are one; k3 explodes where pi is much smaller than ref.")
lesson.done()
