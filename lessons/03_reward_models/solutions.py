# %% [markdown]
# # 3. Reward models: the exercises, worked
# Predict first, then run: `python -m lessons 03 --solutions`.

# %%
from dataclasses import replace

import torch

from data.world import WORD, World
from lessons.course import Lesson, spread
from lessons.start import LONGEST_ANSWER, REWARD, Start, kept, starting_point
from minigpt.evaluation import sample_responses
from reward.evaluate import accuracy_by_fault, calibration, evaluate_reward_accuracy, reward_margins
from reward.model import RewardModel
from reward.start import center
from reward.train import train_reward_model

lesson = Lesson("03_reward_models", "solutions")
starts = [starting_point(seed, quick=lesson.quick) for seed in lesson.pick((0, 1, 2), (0, 1))]
RECIPE = {**REWARD, "num_epochs": 1}
half = lesson.pick(4000, 48)  # half of the pairs, read once: the exercises need many models
lesson.number("half", f"{half:,}")


def trained(s: Start, rows: list[dict[str, str]], seed: int = 0, num_epochs: int = 1) -> RewardModel:
    """The same function as in lesson.py, so that a model that was trained there is read from disk here."""
    def train() -> RewardModel:
        torch.manual_seed(seed)
        model = RewardModel.from_policy(s.sft)
        train_reward_model(model, rows, seed=seed, **{**RECIPE, "num_epochs": num_epochs})
        prompts, answers = sample_responses(s.sft, s.world.prompts, 4, LONGEST_ANSWER, s.seed)
        center(model, prompts, [answer.ids for answer in answers])
        return model

    return kept(train, "pairs", rows, seed, num_epochs, RECIPE, s.seed, vars(s.world.config))


# %% [markdown]
# ## 1. The mean over the response instead of its last token

# %%
rows = []
for pooling in ("last", "mean"):
    accuracies, faults = [], []
    for s in starts:
        torch.manual_seed(s.seed)
        model = RewardModel.from_policy(s.sft, pooling)
        train_reward_model(model, s.world.preferences[:half], seed=s.seed, **RECIPE)
        margins = reward_margins(model, s.world.heldout_preferences)
        accuracies.append(evaluate_reward_accuracy(model, s.world.heldout_preferences))
        faults.append(accuracy_by_fault(s.world, s.world.heldout_preferences, margins))
    lesson.number(f"pooled_{pooling}", accuracies)
    rows.append([pooling, spread(accuracies)] + [spread([of.get(fault, 0.5) for of in faults], ".2f")
                                                 for fault in ("wrong", "rude", "rambling", "ignores the request")])
lesson.table("pooling", ["pooling", "held-out accuracy", "wrong", "rude", "rambling", "ignores the request"], rows)

# %% [markdown]
# ## 2. Too sure: one number that cools a model down
# The model that learned few pairs by heart. A temperature is fitted on one half of the held-out pairs, tried on the other.

# %%
few, most = lesson.pick(125, 12), starts[0].world.config.preference_rows
before, after, heats, same = [], [], [], []
for s in starts:
    model = trained(s, s.world.preferences[:few], s.seed, most // few)
    margins = reward_margins(model, s.world.heldout_preferences)
    fit, test = margins[::2], margins[1::2]
    heat = min(torch.arange(0.5, 20, 0.05).tolist(), key=lambda t: float(torch.nn.functional.softplus(-fit / t).mean()))
    heats.append(heat)
    for kept_errors, of in ((before, test), (after, test / heat)):
        kept_errors.append(sum(abs(b["predicted"] - b["observed"]) * b["pairs"] for b in calibration(of)) / len(of))
    same.append(float(((test > 0) == (test / heat > 0)).float().mean()))
lesson.number("heat", heats, ".1f")
lesson.number("error_before", before)
lesson.number("error_after", after)
lesson.number("same_choices", f"{min(same):.0%}")

# %% [markdown]
# ## 3. A length hack, undone
# Annotators gave each 10 words more `length_bias` of reward. Subtract a price for each word from the score: which price?

# %%
bias, temperature = 4.0, starts[0].world.config.temperature
price = bias / (10 * temperature)  # in log-odds, as the score is
lesson.number("price", price, ".2f")
rows = []
for share in (0.0, 0.5, 1.0, 1.5, 2.0):
    accuracies, rambling = [], []
    for s in starts[:2]:
        world = World(replace(s.world.config, length_bias=bias), s.seed)
        model = trained(replace(s, world=world), world.preferences, s.seed)
        more_words = torch.tensor([len(WORD.findall(row["chosen"])) - len(WORD.findall(row["rejected"]))
                                   for row in s.world.heldout_preferences])
        margins = reward_margins(model, s.world.heldout_preferences) - share * price * more_words
        accuracies.append(float((margins > 0).float().mean()))
        rambling.append(accuracy_by_fault(s.world, s.world.heldout_preferences, margins).get("rambling", 0.5))
    name = f"{share:.1f}".replace(".", "_")
    lesson.number(f"priced_{name}", accuracies)
    rows.append([f"{share * price:.2f}", spread(accuracies), spread(rambling, ".2f")])
lesson.table("prices", ["price of a word (log-odds)", "accuracy, fair held-out pairs", "where one is rambling"], rows)

# %% [markdown]
# ## 4. Turn half of the labels round

# %%
losses, accuracies, sizes, shares = [], [], [], []
for s in starts[:2]:
    world = World(replace(s.world.config, label_noise=0.5), s.seed)
    torch.manual_seed(s.seed)
    model, history, _ = train_reward_model(RewardModel.from_policy(s.sft), world.preferences[:half], seed=s.seed, **RECIPE)
    losses.append(sum(history[-100:]) / len(history[-100:]))
    accuracies.append(evaluate_reward_accuracy(model, s.world.heldout_preferences))
    sizes.append(float(reward_margins(model, s.world.heldout_preferences).abs().mean()))
    gaps = [world.true_reward(row["prompt"], row["chosen"]) - world.true_reward(row["prompt"], row["rejected"])
            for row in world.preferences[:half]]
    shares.append(sum(gap > 0 for gap in gaps) / sum(gap != 0 for gap in gaps))
lesson.number("half_loss", losses)
lesson.number("half_accuracy", accuracies, ".2f")
lesson.number("half_margin", sizes, ".2f")
lesson.number("half_share", shares)

# %% [markdown]
# ## 5. Helpful .7, polite .3: one reward model or two?

# %%
def world_of(s: Start, helpful: float, polite: float) -> World:
    return World(replace(s.world.config, helpful_weight=helpful, polite_weight=polite), s.seed)


results = {"one_as_trained": [], "two_as_trained": [], "one_turned": [], "two_turned": [], "limit": [], "limit_turned": []}
for s in starts[:2]:
    models = {}
    for name, weights in (("both", (0.7, 0.3)), ("helpful", (1.0, 0.0)), ("polite", (0.0, 1.0))):
        world = world_of(s, *weights)
        models[name] = trained(replace(s, world=world), world.preferences[:half], s.seed)
    for when, (helpful, polite) in (("as_trained", (0.7, 0.3)), ("turned", (0.3, 0.7))):
        test = world_of(s, helpful, polite)
        rows = test.heldout_preferences
        two = helpful * reward_margins(models["helpful"], rows) + polite * reward_margins(models["polite"], rows)
        results[f"one_{when}"].append(evaluate_reward_accuracy(models["both"], rows))
        results[f"two_{when}"].append(float((two > 0).float().mean()))
        results["limit" if when == "as_trained" else "limit_turned"].append(test.bayes_accuracy(rows))
lesson.table("two_rewards",
             ["held-out labels weigh", "one model, trained on .7 / .3", "two models, weighed when used", "Bayes limit"],
             [["helpful .7, polite .3", *(spread(results[key]) for key in ("one_as_trained", "two_as_trained", "limit"))],
              ["helpful .3, polite .7", *(spread(results[key]) for key in ("one_turned", "two_turned", "limit_turned"))]])
for key, values in results.items():
    lesson.number(key, values)
lesson.done()
