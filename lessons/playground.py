"""The reader's playground: small models that run in the page itself, in plain JavaScript.

The page holds their weights as base64 of float16; lessons/reader/minigpt.js is the arithmetic, and
lessons/reader/playground.js what one sees.
"""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from data.world import World, WorldConfig
from lessons.course import LESSONS
from lessons.start import LONGEST_ANSWER, WORLD
from minigpt.checkpoint import load_checkpoint
from minigpt.errors import UserError
from minigpt.weights import first_not_finite
from reward.model import RewardModel

READER = LESSONS / "reader"
NAMES = ("sft", "dpo", "ppo", "reward")


def playground(models: Path) -> str:
    """The page's playground as HTML, with the checkpoints <models>/{sft,dpo,ppo,reward}.pt.

    Raises FileNotFoundError if one is missing, UserError if the page cannot run it.
    """
    exported = {name: exported_model(models / f"{name}.pt") for name in NAMES}
    world = World(WorldConfig(**WORLD))
    return filled("playground.html",
                  models=json.dumps({"models": exported, "longest_answer": LONGEST_ANSWER}),
                  heldout=questions(world.heldout_prompts, world.heldout_preferences),
                  trained=questions(world.prompts, world.preferences),
                  minigpt=(READER / "minigpt.js").read_text(encoding="utf-8"),
                  script=(READER / "playground.js").read_text(encoding="utf-8"))


def exported_model(path: Path) -> dict[str, Any]:
    """The settings of a checkpoint, the sizes of its weights, and these in half precision.

    A reward model is written as its trunk with a head beside it.  Raises UserError on a checkpoint
    that the page cannot run: a reward model with other pooling or reading than the lessons', or
    weights too large for half precision.
    """
    model = load_checkpoint(path)
    if isinstance(model, RewardModel) and (model.pooling, model.reads) != ("last", "both"):
        raise UserError(f"{path}: the page can only run a reward model with pooling='last' and "
                        "reads='both'")
    weights = {name.removeprefix("trunk."): weight.half()
               for name, weight in model.state_dict().items()}
    if first_not_finite(weights) is not None:
        raise UserError(f"{path}: {first_not_finite(weights)!r} is too large for half precision")
    data = b"".join(weight.numpy().astype("<f2").tobytes() for weight in weights.values())
    return {"settings": model.settings,
            "sizes": {name: weight.numel() for name, weight in weights.items()},
            "float16": base64.b64encode(data).decode()}


def questions(prompts: list[str], pairs: list[dict[str, str]]) -> str:
    """The prompts as <option>s, each with the first pair of answers to it."""
    first = {pair["prompt"]: pair for pair in reversed(pairs)}
    return "\n".join(f'<option data-chosen="{html.escape(first[prompt]["chosen"])}" '
                     f'data-rejected="{html.escape(first[prompt]["rejected"])}">'
                     f"{html.escape(prompt)}</option>" for prompt in prompts)


def filled(template: str, **parts: str) -> str:
    """A file of lessons/reader/ with its {{slots}} filled."""
    text = (READER / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], text)
