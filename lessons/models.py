"""The small trained models that ship with the repository:  python -m lessons.build --models

lessons/models/ holds a base, SFT, reward, DPO and PPO model of the lessons' size, each in half
precision (350 KB).  models.json says of each what it was made from, its recipe, its figures on
held-out data, its most likely answers, and a canary: what a short run of the same training logs,
step by step.  A test repeats all of it, so a change of the library that would make other models
shows up there, and a change that would not needs no new models.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from dpo.evaluate import evaluate_preference_accuracy
from dpo.train import dpo_train
from lessons.canary import RECIPES, canary_of
from lessons.start import (
    DPO,
    LONGEST_ANSWER,
    MODELS,
    PPO,
    Start,
    kept,
    key_of,
    made_from,
    shipped,
    starting_point,
)
from minigpt.checkpoint import load_checkpoint, save_checkpoint
from minigpt.disk import write_json
from minigpt.model import MiniGPT
from minigpt.sampling import generate
from ppo.train import ppo_training
from reward.evaluate import evaluate_reward_accuracy
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows


def models_of(start: Start) -> dict[str, nn.Module]:
    """The five models: those that lessons start from, and two policies trained from them."""
    world, parts = start.world, made_from(start.world, start.seed)
    dpo = kept(lambda: dpo_train(start.fresh_policy(), start.sft, world.preferences,
                                 seed=start.seed, **DPO)[0], "dpo", *parts["dpo"])
    ppo = kept(lambda: ppo_training(start.fresh_policy(), start.sft, start.reward, world.prompts,
                                    seed=start.seed, **PPO)[0], "ppo", *parts["ppo"])
    return {"base": start.base, "sft": start.sft, "reward": start.reward, "dpo": dpo, "ppo": ppo}


def figures_of(name: str, model: Any, start: Start) -> dict[str, float]:
    """What the model does on held-out data."""
    world = start.world
    if name == "reward":
        return {"accuracy_heldout": evaluate_reward_accuracy(model, world.heldout_preferences)}
    if name == "base":
        return {"loss_on_first_1000_texts":
                evaluate_loss(model, plain_text_rows(world.plain_text[:1000]))}
    figures = {"loss_heldout": evaluate_loss(model, world.heldout_sft_rows), **start.measure(model)}
    if name != "sft":
        figures["preference_accuracy"] = \
            evaluate_preference_accuracy(model, start.sft, world.heldout_preferences)
    return figures


def answers_of(model: MiniGPT, start: Start) -> dict[str, str]:
    """The most likely answer to each held-out prompt."""
    prompts = start.world.heldout_prompts
    answers = generate(model, prompts, LONGEST_ANSWER, greedy=True)
    return dict(zip(prompts, (answer.text for answer in answers), strict=True))


def description(name: str, model: Any, start: Start) -> dict[str, Any]:
    """What models.json says of a model."""
    answers = {} if name == "reward" else {"answers": answers_of(model, start)}
    return {"made_from": key_of(made_from(start.world, start.seed)[name]), "recipe": RECIPES[name],
            "figures": figures_of(name, model, start), "canary": canary_of(name, start)} | answers


def build_models() -> None:
    """Train the five models and write lessons/models/."""
    MODELS.mkdir(exist_ok=True)
    (MODELS / "models.json").unlink(missing_ok=True)  # or the models that are there would be taken
    shipped.cache_clear()
    for name, model in models_of(starting_point()).items():
        save_checkpoint(model.half(), MODELS / f"{name}.pt")
    models = {name: load_checkpoint(MODELS / f"{name}.pt") for name in RECIPES}  # as rounded
    start = replace(starting_point(), **{name: models[name] for name in ("base", "sft", "reward")})
    described = {name: description(name, model, start) for name, model in models.items()}
    write_json(MODELS / "models.json", described)
    shipped.cache_clear()
    (MODELS / "README.md").write_text(PAGE + table_of(described), encoding="utf-8")


PAGE = """# The models that ship with the lessons

One model of each stage, of the lessons' size (173,888 weights, half precision), trained on eight
facts of the little world. Talk to them: `python -m minigpt.chat`. In Python:

```python
from minigpt import generate, load_checkpoint

model = load_checkpoint("lessons/models/dpo.pt")
print(generate(model, ["Capital of Norway?"], max_new_tokens=64, greedy=True)[0].text)
```

`python -m lessons.build --models` makes them; [models.json](models.json) has the recipe of each,
its most likely answers to the held-out prompts, and how its training starts. Figures on held-out
data:

"""


def table_of(described: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: a row for each figure, a column for each model."""
    names = list(dict.fromkeys(name for model in described.values() for name in model["figures"]))
    rows = [["", *described], ["---"] * (len(described) + 1)]
    rows += [[f"`{name}`", *(f"{model['figures'][name]:.3f}" if name in model["figures"] else ""
                             for model in described.values())] for name in names]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
