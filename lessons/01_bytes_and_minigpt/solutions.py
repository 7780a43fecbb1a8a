# %% [markdown]
# # 1. Bytes and MiniGPT: the exercises, worked
# Predict first, then run: `python -m lessons 01 --solutions`.

# %%
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
heldout = plain_text_rows(start.world.heldout_plain_text)

# %% [markdown]
# ## 1. A model that may look ahead
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


texts = plain_text_rows(start.world.plain_text)
for name, kind in (("causal", MiniGPT), ("one_ahead", SeesAhead), ("everything", SeesEverything)):
    torch.manual_seed(0)
    model, _ = sft_train(kind(**SIZE), texts, **BASE)
    lesson.number(f"loss_{name}", evaluate_loss(model, heldout), ".3f")
    if name == "one_ahead":
        lesson.number("says_one_ahead", repr(generate(model, [""], max_new_tokens=40, seed=1)[0].text).replace("`", "'"))

# %% [markdown]
# ## 2. No positions
# Without the position table, the model sees which bytes came before, but hardly in which order.

# %%
torch.manual_seed(0)
model = MiniGPT(**SIZE)
model.position_embedding.weight.data.zero_()
model.position_embedding.weight.requires_grad_(False)
model, _ = sft_train(model, texts, **BASE)
lesson.number("loss_without_positions", evaluate_loss(model, heldout), ".3f")

# %% [markdown]
# ## 3. What does a fact weigh?
# The summed log-probability of an answer, right and wrong.

# %%
world = start.world
question = next(q for q in world.questions if q.family == "capital")
others = sorted(set(CAPITALS.values()) - {question.answer})
prompt = question.wordings[0]
right = sequence_logps(start.sft, [prompt], [f"It is {question.answer}."])
wrong = sequence_logps(start.sft, [prompt] * len(others), [f"It is {city}." for city in others])
lesson.number("question", prompt)
lesson.number("logp_right", float(right), ".2f")
lesson.number("logp_best_wrong", float(wrong.max()), ".2f")
lesson.number("odds", float((right - wrong.max()).exp()), ".0f")
lesson.number("bytes_right", str(len(encode(f"It is {question.answer}.")) + 1))
lesson.done()
