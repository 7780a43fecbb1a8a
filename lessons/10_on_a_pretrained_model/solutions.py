# %% [markdown]
# # 10. On a pretrained model: the exercises, worked
# Predict first, then run: `python -m lessons 10 --solutions`.

# %%
from dataclasses import replace

import torch

from data.task import RowsConfig
from dpo import dpo_loss, ipo_loss
from lessons.adapt import AdaptConfig, load_rows
from lessons.course import Lesson
from lessons.pretrained import (
    PretrainedConfig,
    load,
    logps_of,
    tiny,
    tokenize,
    train,
    with_adapters,
)
from minigpt.metrics import preference_accuracy

lesson = Lesson("10_on_a_pretrained_model", "solutions")
model, tokenizer = lesson.pick(load, tiny)()
config = PretrainedConfig()
count = AdaptConfig(pairs=lesson.pick(48, 16), heldout=lesson.pick(48, 8))
pairs, heldout = ([tokenize(tokenizer, row) for row in rows]
                  for rows in load_rows(count, RowsConfig(), seed=0))
lesson.number("pairs_solutions", str(len(pairs)))
lesson.number("heldout_solutions", str(len(heldout)))
table = []


def attempt(name, pairs, config, loss_of=dpo_loss):
    """Train adapters, measure on held-out pairs, and take the adapters away again."""
    adapted = with_adapters(model, config.rank, config.seed)
    history = train(adapted, pairs, config, loss_of)
    policy, reference = logps_of(adapted, heldout)
    margins = (policy - reference) @ torch.tensor([1.0, -1.0])
    accuracy, weights = preference_accuracy(margins), adapted.get_nb_trainable_parameters()[0]
    adapted.unload()
    table.append([name, f"{weights / 1e6:.1f}", f"{history[0]['loss']:.4f}",
                  f"{history[-1]['loss']:.4f}", f"{accuracy:.3f}", f"{margins.mean():+.2f}"])


attempt("DPO, rank 16", pairs, config)

# %% [markdown]
# ## 1. Flipped labels
# Every chosen response becomes the rejected one.

# %%
attempt("flipped labels", [pair._replace(chosen=pair.rejected, rejected=pair.chosen)
                          for pair in pairs], config)

# %% [markdown]
# ## 2. Rank 1
# A sixteenth of the weights.

# %%
attempt("rank 1", pairs, replace(config, rank=1))

# %% [markdown]
# ## 3. Another loss of the family
# IPO's loss is (D - 1 / (2 beta))^2, and D is 0 at the start: 1 / (4 beta^2) = 1.

# %%
attempt("IPO", pairs, config, ipo_loss)
lesson.table("attempts", ["", "million weights", "first loss", "last loss", "ranked right",
                          "margin D, nats"], table,
             title="Adapters trained in four ways")
lesson.done()
