# %% [markdown]
# # 1. Bytes and MiniGPT: the exercises, worked
# Predict first, then run: `python -m lessons 01 --solutions`.

# %%
import math

import torch

from data.facts import CAPITALS
from lessons.course import Lesson
from lessons.start import BASE, SIZE, starting_point
from minigpt import MiniGPT, encode, generate, sequence_logps
from sft.evaluate import evaluate_loss
from sft.start import plain_text_rows
from sft.train import sft_train

lesson = Lesson("01_bytes_and_minigpt", "solutions")
start = starting_point(quick=lesson.quick)
texts = plain_text_rows(start.world.plain_text)
heldout = plain_text_rows(start.world.heldout_plain_text)

# %% [markdown]
# ## 1. A model that looks ahead
# Let every byte see one byte more, the one it has to predict; then the whole row.

# %%
class SeesAhead(MiniGPT):
    """MiniGPT whose mask lets each byte see `ahead` bytes too many."""

    ahead = 1

    def hidden_states(self, token_ids, positions=None, visible=None, cache=None, at=None):
        if cache is None:
            columns = token_ids.shape[1]
            visible = torch.ones(*token_ids.shape, columns, dtype=torch.bool).tril(self.ahead)
        return super().hidden_states(token_ids, positions, visible, cache, at)


class SeesEverything(SeesAhead):
    ahead = 1000


lesson.number("loss_causal", evaluate_loss(start.base, heldout), ".3f")
for name, kind in (("one_ahead", SeesAhead), ("everything", SeesEverything)):
    torch.manual_seed(0)
    model, _ = sft_train(kind(**SIZE), texts, **BASE)
    lesson.number(f"loss_{name}", evaluate_loss(model, heldout), ".3f")
    if name == "one_ahead":
        said = generate(model, [""], max_new_tokens=40, seed=1)[0].text
        lesson.number("says_one_ahead", repr(said).replace("`", "'"))

# %% [markdown]
# ## 2. No positions
# Without the position table, a layer sees which bytes came before, but hardly in which order.

# %%
torch.manual_seed(0)
model = MiniGPT(**SIZE)
model.position_embedding.weight.data.zero_()
model.position_embedding.weight.requires_grad_(False)
model, _ = sft_train(model, texts, **BASE)
lesson.number("loss_without_positions", evaluate_loss(model, heldout), ".3f")

# %% [markdown]
# ## 3. How sure is it of a fact?
# The summed log-probability of an answer, right and wrong.

# %%
question = next(q for q in start.world.questions if q.family == "capital")
cities = [question.answer, *sorted(set(CAPITALS.values()) - {question.answer})]
answers = [f"It is {city}." for city in cities]
prompt = question.wordings[0]
right, *wrong = sequence_logps(start.sft, [prompt] * len(cities), answers).tolist()
best, likeliest = max(zip(wrong, answers[1:], strict=True))
lesson.table("capitals", ["answer", "log p (nats)", "bytes, with EOS"],
             [[answer, f"{logp:.2f}", len(encode(answer)) + 1]
              for answer, logp in ((answers[0], right), (likeliest, best))], title=prompt)
lesson.number("odds", math.exp(right - best), ".0f")
lesson.done()
