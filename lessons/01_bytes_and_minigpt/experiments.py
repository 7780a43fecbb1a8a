"""The runs behind the article, on five seeds:  python -m lessons 01 --experiments"""

import torch

from lessons.course import Lesson
from lessons.start import BASE, SIZE, starting_point
from minigpt import MiniGPT
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("01_bytes_and_minigpt", "experiments")
starts = [starting_point(seed, quick=lesson.quick)
          for seed in lesson.pick((0, 1, 2, 3, 4), (0, 1))]


def fresh_model(seed: int, positions: bool = True) -> MiniGPT:
    """An untrained model; without positions its position table is 0 and stays so."""
    torch.manual_seed(seed)
    model = MiniGPT(**SIZE)
    if not positions:
        model.position_embedding.weight.data.zero_()
        model.position_embedding.weight.requires_grad_(False)
    return model


losses = {"untrained": [], "trained": [], "without positions": []}
for start in lesson.progress(starts, "seeds"):
    heldout = plain_text_rows(start.world.heldout_plain_text)
    losses["untrained"].append(evaluate_loss(fresh_model(start.seed), heldout))
    losses["trained"].append(evaluate_loss(start.base, heldout))
    blind, _ = sft_train(fresh_model(start.seed, positions=False),
                         plain_text_rows(start.world.plain_text), seed=start.seed, **BASE)
    losses["without positions"].append(evaluate_loss(blind, heldout))
lesson.keep("losses", losses)
lesson.done()
