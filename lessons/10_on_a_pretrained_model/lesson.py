# %% [markdown]
# # 10. On a pretrained model
# The article is README.md beside this file. This takes a slice of its run: 48 pairs of the little
# world, so that it needs no file. The loop is in lessons/pretrained.py, what measures it in
# lessons/adapt.py.

# %%
import torch

from data import PREFERENCE_DATA
from data.preferences import check_preferences
from data.task import RowsConfig
from lessons.adapt import AdaptConfig, load_rows, run
from lessons.course import Lesson
from lessons.pretrained import (
    PretrainedConfig,
    collate,
    load,
    response_logits,
    tiny,
    tokenize,
)

lesson = Lesson("10_on_a_pretrained_model")
model, tokenizer = lesson.pick(load, tiny)()  # a quick run takes a random model

# %% [markdown]
# ## One row, as the model reads it
# The chat template asks, the response answers, and only the tokens of the response are in the sum.

# %%
row, = (row for row in check_preferences(PREFERENCE_DATA) if row["prompt"] == "Who wrote Hamlet?")
pair = tokenize(tokenizer, row)
with torch.no_grad():
    logits, tokens = response_logits(model, collate([(pair.prompt, pair.chosen)]))
logps = logits.log_softmax(-1)[range(len(tokens)), tokens].tolist()
shown = [repr(tokenizer.decode([token])).replace("'", "`")
         for token in pair.prompt[-8:] + pair.chosen]
lesson.table("row", ["token", "log-probability, if it is in the sum"],
             list(zip(shown, [""] * 8 + [f"{logp:.2f}" for logp in logps], strict=True)),
             title=f"The last 8 of {len(pair.prompt)} tokens of the prompt, and the response")
lesson.number("prompt_tokens", str(len(pair.prompt)))
lesson.number("row_logp", sum(logps), ".2f")

# %% [markdown]
# ## A short run
# One model in memory: with its adapters it is the policy, without them the reference. At the first
# step both are the same, so the loss is log 2.

# %%
count = AdaptConfig(pairs=lesson.pick(48, 16), heldout=lesson.pick(48, 8))
short = run(model, tokenizer, *load_rows(count, RowsConfig(), seed=0), PretrainedConfig())
lesson.number("short_pairs", str(short["pairs"]))
lesson.number("short_heldout", str(short["heldout_pairs"]))
lesson.number("first_loss", short["history"][0]["loss"], ".7f")
lesson.number("first_margin", short["history"][0]["rewards/margins"], ".1f")
for name in ("weights", "weights_trained"):
    lesson.number(name, f"{short[name] / 1e6:.1f}")

# %%
lesson.table("short", ["held-out pairs", "before", "after"],
             [[title, *(format(short[when][name], form) for when in ("before", "after"))]
              for name, title, form in (
                  ("accuracy", "ranked right, by implicit rewards", ".2f"),
                  ("accuracy_by_logps", "ranked right, by log-probabilities alone", ".2f"),
                  ("kl_nats_per_response", "KL, nats per response", ".2f"))],
             title=f"One pass over {short['pairs']} pairs")
lesson.number("short_accuracy", short["after"]["accuracy"], ".2f")
lesson.table("short_answers", ["question", "before", "after"],
             [[" ".join(text.split())[:60] for text in texts] for texts in short["answers"][:3]],
             title="What it answers (the first 60 characters)")
lesson.done()
