# %% [markdown]
# # 3. Reward models: the exercises, worked
# Predict first, then run: `python -m lessons 03 --solutions`. Five seeds throughout, and 2,000
# pairs for each model, read once.

# %%
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from data.world import WORD, World
from lessons.course import Lesson, spread
from lessons.start import REWARD, Start, starting_point
from reward.evaluate import accuracy_by_fault, calibration, reward_margins
from reward.model import RewardModel
from reward.train import train_reward_model

lesson = Lesson("03_reward_models", "solutions")
starts = [starting_point(seed, quick=lesson.quick) for seed in range(lesson.pick(5, 2))]
PAIRS, FEW = lesson.pick((2000, 125), (48, 12))
lesson.number("pairs", f"{PAIRS:,}")


def trained(start: Start, rows: list[dict[str, str]], pooling: str = "last",
            num_epochs: int = 1) -> RewardModel:
    """A reward model that began as the SFT model."""
    torch.manual_seed(start.seed)
    model = RewardModel.from_policy(start.sft, pooling)
    options = {**REWARD, "num_epochs": num_epochs, "seed": start.seed}
    return train_reward_model(model, rows, **options)[0]


def changed(start: Start, **changes: float) -> World:
    """The same prompts and answers, judged by others."""
    return World(replace(start.world.config, **changes), start.seed)


def margins_of(start: Start, model: RewardModel) -> Tensor:
    return reward_margins(model, start.world.heldout_preferences)


def accuracy_of(margins: Tensor) -> float:
    return float((margins > 0).float().mean())


def faults_of(start: Start, margins: Tensor) -> dict[str, float]:
    return accuracy_by_fault(start.world, start.world.heldout_preferences, margins)


# %% [markdown]
# ## 1. The mean over the response instead of its last token

# %%
FAULTS = ("wrong", "rude", "rambling", "ignores the request")
rows, accuracies = [], {}
for pooling in ("last", "mean"):
    margins = [margins_of(start, trained(start, start.world.preferences[:PAIRS], pooling))
               for start in lesson.progress(starts, pooling)]
    accuracies[pooling] = [accuracy_of(of) for of in margins]
    faults = [faults_of(start, of) for start, of in zip(starts, margins, strict=True)]
    lesson.number(f"pooled_{pooling}", accuracies[pooling])
    rows.append([pooling, spread(accuracies[pooling]),
                 *(spread([of.get(fault, 0.5) for of in faults], ".2f") for fault in FAULTS)])
lesson.number("last_less_mean", [a - b for a, b in zip(*accuracies.values(), strict=True)])
lesson.table("pooling", ["pooling", "held-out accuracy", *FAULTS], rows,
             title="Share of held-out pairs ranked right, in all and by the fault of the rejected")

# %% [markdown]
# ## 2. Too sure: one number that cools a model down
# The model that learned a few pairs by heart. The number is fitted on one half of the held-out
# pairs and tried on the other.


# %%
def calibration_error(margins: Tensor) -> float:
    bins = calibration(margins)
    return sum(abs(b["predicted"] - b["observed"]) * b["pairs"] for b in bins) / len(margins)


def fitted_heat(margins: Tensor) -> float:
    """What to divide the margins by, for the least loss."""
    return min(torch.arange(0.5, 20, 0.05).tolist(),
               key=lambda heat: float(softplus(-margins / heat).mean()))


heats, before, after, same = [], [], [], []
for start in lesson.progress(starts, "few pairs"):
    model = trained(start, start.world.preferences[:FEW], num_epochs=PAIRS // FEW)
    margins = margins_of(start, model)
    fit, test = margins[::2], margins[1::2]
    heats.append(fitted_heat(fit))
    before.append(calibration_error(test))
    after.append(calibration_error(test / heats[-1]))
    same.append(float(((test > 0) == (test / heats[-1] > 0)).float().mean()))
lesson.number("heat", heats, ".1f")
lesson.number("error_before", before)
lesson.number("error_after", after)
lesson.number("same_choices", f"{min(same):.0%}")

# %% [markdown]
# ## 3. A length hack, undone
# Annotators gave each 10 words a bonus of 4. Subtract a price for each word: which?


# %%
def words_more(row: dict[str, str]) -> int:
    return len(WORD.findall(row["chosen"])) - len(WORD.findall(row["rejected"]))


bias, temperature = 4.0, starts[0].world.config.temperature
price = bias / (10 * temperature)  # in log-odds, as the score is
lesson.number("price", price, ".2f")
hacked = [margins_of(start, trained(start, changed(start, length_bias=bias).preferences[:PAIRS]))
          for start in lesson.progress(starts, "length bias")]
rows = []
for share in (0.0, 0.5, 1.0, 1.5, 2.0):
    margins = [of - share * price * torch.tensor([words_more(row)
                                                  for row in start.world.heldout_preferences])
               for start, of in zip(starts, hacked, strict=True)]
    accuracies = [accuracy_of(of) for of in margins]
    rambling = [faults_of(start, of).get("rambling", 0.5)
                for start, of in zip(starts, margins, strict=True)]
    lesson.number(f"priced_{share:.1f}".replace(".", "_"), accuracies)
    rows.append([f"{share * price:.2f}", spread(accuracies), spread(rambling, ".2f")])
lesson.table("prices", ["price of a word (log-odds)", "held-out accuracy", "rambling"], rows,
             title="Share of fair held-out pairs ranked right, in all and where one rambles")

# %% [markdown]
# ## 4. Half of the labels flipped


# %%
def truly_better(start: Start, rows: list[dict[str, str]]) -> float:
    """How often the chosen answer is the better one, where one is."""
    gaps = [start.world.true_reward(row["prompt"], row["chosen"])
            - start.world.true_reward(row["prompt"], row["rejected"]) for row in rows]
    return sum(gap > 0 for gap in gaps) / sum(gap != 0 for gap in gaps)


coins = [changed(start, label_noise=0.5).preferences[:PAIRS] for start in starts]
margins = [margins_of(start, trained(start, rows))
           for start, rows in zip(starts, coins, strict=True)]
lesson.number("half_accuracy", [accuracy_of(of) for of in margins], ".2f")
lesson.number("half_margin", [float(of.abs().mean()) for of in margins], ".2f")
lesson.number("half_loss", [float(softplus(-of).mean()) for of in margins])
lesson.number("half_share", [truly_better(*both) for both in zip(starts, coins, strict=True)])

# %% [markdown]
# ## 5. Helpful .7, polite .3: one reward model or two?


# %%
def weighed(start: Start, helpful: float, polite: float) -> World:
    return changed(start, helpful_weight=helpful, polite_weight=polite)


results = {f"{who}_{when}": [] for who in ("one", "two", "limit") for when in ("before", "after")}
for start in lesson.progress(starts, "one or two"):
    both, helpful, polite = (trained(start, weighed(start, *weights).preferences[:PAIRS])
                             for weights in ((0.7, 0.3), (1.0, 0.0), (0.0, 1.0)))
    for when, weights in (("before", (0.7, 0.3)), ("after", (0.3, 0.7))):
        test = weighed(start, *weights)
        rows = test.heldout_preferences
        two = weights[0] * reward_margins(helpful, rows) + weights[1] * reward_margins(polite, rows)
        results[f"one_{when}"].append(accuracy_of(reward_margins(both, rows)))
        results[f"two_{when}"].append(accuracy_of(two))
        results[f"limit_{when}"].append(test.bayes_accuracy(rows))
for when in ("before", "after"):
    pairs = zip(results[f"two_{when}"], results[f"one_{when}"], strict=True)
    lesson.number(f"two_less_one_{when}", [two - one for two, one in pairs])
lesson.table("two_rewards", ["held-out labels weigh", "one model, trained on .7 / .3",
                             "two models, weighed when used", "Bayes limit"],
             [[name, *(spread(results[f"{who}_{when}"]) for who in ("one", "two", "limit"))]
              for name, when in (("helpful .7, polite .3", "before"),
                                 ("helpful .3, polite .7", "after"))],
             title="Accuracy on held-out pairs, before and after a change of mind")
lesson.done()
