# %% [markdown]
# # 2. SFT
# The article is README.md beside this file. Run this from the shell (`python -m lessons 02`) or cell by cell.

# %%
import copy
import time
from statistics import mean, stdev

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.examples import sft_examples
from data.layouts import read_demonstrations
from data.world import FREE_WORDS, WORD
from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from lessons.start import BASE, LONGEST_ANSWER, SFT, starting_point
from minigpt import EOS, MiniGPT, decode, encode, generate
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses
from minigpt.examples import Example
from minigpt.logprobs import logps_of, token_logps
from minigpt.plots import COLOURS
from minigpt.sampling import sample_ids
from minigpt.training import TrainingLoop
from sft.evaluate import evaluate_loss
from sft.loss import sft_loss
from sft.start import plain_text_rows
from sft.train import SFTConfig, sft_train

lesson = Lesson("02_sft")
seeds = lesson.pick((0, 1, 2), (0, 1))
starts = [starting_point(seed, quick=lesson.quick) for seed in seeds]
start = starts[0]
world = start.world
LONGEST_ROW = start.base.max_seq_len
samples = lesson.pick(16, 1)  # answers to each prompt


def heldout_plain(begin) -> list[dict[str, str]]:
    return plain_text_rows(begin.world.heldout_plain_text[:lesson.pick(200, 8)])



# %% [markdown]
# ## How others write a demonstration down, and what it becomes here

# %%
human, gpt = {"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "Pear."}
layouts = {
    "columns": {"prompt": "Name a fruit.", "response": "Pear."},
    "Alpaca": {"instruction": "Name a fruit.", "input": "It must be green.", "output": "Pear."},
    "ShareGPT": {"conversations": [human, gpt]},
    "ShareGPT, two turns": {"conversations": [human, gpt, {"from": "human", "value": "Another."},
                                              {"from": "gpt", "value": "Plum."}]},
    "messages, with a system prompt": {"messages": [{"role": "system", "content": "Be brief."},
                                                    {"role": "user", "content": "Name a fruit."},
                                                    {"role": "assistant", "content": "Pear."}]},
    "ChatML, one text": {"text": "<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\nPear.<|im_end|>"},
}
rows = []
for name, row in layouts.items():
    reading = read_demonstrations(row, name)
    rows += [[name, reading.layout, repr(record["prompt"]), repr(record["response"])] for record in reading.records]
lesson.table("layouts", ["the row is", "found as", "prompt", "response"], rows)

# %% [markdown]
# ## Base model and SFT model, asked the same
# The base model has never seen SEP. It knows questions only as plain text, so we ask it in both ways.

# %%
def go_on(model: MiniGPT, prompts: list[str], samples: int = 1, **how) -> list[str]:
    """What the model writes behind each prompt as plain text, to the end of the first sentence."""
    ids = [[EOS, *encode(prompt + " ")] for prompt in prompts for _ in range(samples)]
    return [decode(answer).split(".")[0] + "." for answer in sample_ids(model, ids, LONGEST_ANSWER, **how)]


shown = [prompt for prompt in world.heldout_prompts if len(prompt) < 50][:5]
lesson.table("answers", ["prompt", "base, asked with SEP", "base, going on with the text", "SFT"],
             [[prompt, *map(repr, answers)] for prompt, *answers in zip(
                 shown, [answer.text[:40] for answer in generate(start.base, shown, LONGEST_ANSWER, greedy=True)],
                 go_on(start.base, shown, greedy=True),
                 [answer.text for answer in generate(start.sft, shown, LONGEST_ANSWER, greedy=True)], strict=True)])

# %%
found = {name: [] for name in ("base, asked with SEP", "base, going on with the text", "SFT", "demonstrations")}
for begin in starts:
    repeated = [prompt for prompt in begin.world.heldout_prompts for _ in range(samples)]
    texts = go_on(begin.base, begin.world.heldout_prompts, samples, generator=torch.Generator().manual_seed(begin.seed))
    found["base, asked with SEP"].append(begin.measure(begin.base, samples))
    found["base, going on with the text"].append(begin.world.measure(repeated, texts))
    found["SFT"].append(begin.measure(begin.sft, samples))
    demonstrations = begin.world.sft_rows
    found["demonstrations"].append(begin.world.measure([row["prompt"] for row in demonstrations],
                                                       [row["response"] for row in demonstrations]))
for name, short in (("base, asked with SEP", "base"), ("base, going on with the text", "base_goes_on"), ("SFT", "sft"),
                    ("demonstrations", "demonstrations")):
    lesson.number(f"right_{short}", [figures["right_share"] for figures in found[name]], ".2f")
    lesson.number(f"reward_{short}", [figures["true_reward"] for figures in found[name]], ".2f")
for when, models in (("before", [begin.base for begin in starts]), ("after", [begin.sft for begin in starts])):
    both = list(zip(starts, models, strict=True))
    lesson.number(f"loss_{when}", [evaluate_loss(model, begin.world.heldout_sft_rows) for begin, model in both], ".2f")
    lesson.number(f"plain_{when}",
                  [evaluate_loss(model, heldout_plain(begin)) for begin, model in both], ".3f")
lesson.number("finished_sft", [figures["finished_share"] for figures in found["SFT"]], ".2f")

# %% [markdown]
# ## What the loss counts: one row, byte by byte
# To score a prompt as well, we call all but its first byte part of the response.

# %%
def all_scored(example: Example) -> Example:
    """The same bytes in the same places, and all but the first count."""
    return Example(example.prompt[:1], (example.prompt[1:] + example.responses[0],))


def surprise(model: MiniGPT, example: Example) -> list[float]:
    """-log p of every byte but the first, in nats."""
    batch = Batches([all_scored(example)], 1).collate([0])
    with torch.no_grad():
        return (-token_logps(model, batch))[0, 1:example.num_tokens].tolist()


row = next(row for row in world.heldout_sft_rows if row["prompt"].endswith("?") and len(row["response"]) > 20)
example = sft_examples([row], LONGEST_ROW)[0]
before, after = surprise(start.base, example), surprise(start.sft, example)
in_prompt = len(example.prompt)
labels = [*map(chr, encode(row["prompt"])), "SEP", *map(chr, encode(row["response"])), "EOS"][1:]
figure, axis = lesson.panels(height=3.2)
figure.set_size_inches(9.5, 3.2)
axis.bar([x - 0.2 for x in range(len(labels))], before, 0.4, color=COLOURS[0], label="base")
axis.bar([x + 0.2 for x in range(len(labels))], after, 0.4, color=COLOURS[1], label="after SFT")
axis.axvspan(-0.6, in_prompt - 1.5, color="#dddddd", zorder=0)
tallest = max(before + after)
axis.text(in_prompt / 2 - 1, tallest * 1.06, "prompt: not scored (m = 0)", ha="center", fontsize=9)
axis.text((in_prompt + len(labels)) / 2 - 1, tallest * 1.06, "response: scored (m = 1)", ha="center", fontsize=9)
axis.set_xticks(range(len(labels)), labels, fontsize=7.5)
for tick in axis.get_xticklabels():
    tick.set_rotation(90 if len(tick.get_text()) > 1 else 0)
axis.set(xlabel="byte", ylabel="surprise, -log p (nats)", xlim=(-0.6, len(labels) - 0.4), ylim=(0, tallest * 1.18))
axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
dearest = max(range(in_prompt - 1, len(labels)), key=lambda place: after[place])
lesson.number("dearest_byte", repr(labels[dearest]))
lesson.number("row_prompt", row["prompt"])
lesson.number("row_response", row["response"])
lesson.figure("row", figure, f"One held-out demonstration. The mean surprise of a response byte falls from "
              f"{mean(before[in_prompt - 1:]):.2f} nats to {mean(after[in_prompt - 1:]):.2f}; what is left stands at the "
              f"forks, most of it ({after[dearest]:.1f} nats) at {labels[dearest]!r}.")

# %% [markdown]
# ## It imitates what it is shown, good and bad
# The true world can judge every text, so we count the same things in the demonstrations and in the model's answers.

# %%
def habits(world, prompts: list[str], texts: list[str]) -> dict[str, float]:
    """Shares of these answers that are ..."""
    seen = [world.judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    asked = [judged for prompt, judged in zip(prompts, seen, strict=True) if prompt.startswith("In ")]
    return {"right": mean(judged.right for judged in seen), "evasive": mean(judged.evasive for judged in seen),
            "polite": mean(judged.tone == "polite" for judged in seen),
            "rude": mean(judged.tone == "rude" for judged in seen),
            "rambling": mean(judged.words > FREE_WORDS for judged in seen),
            "obedient": mean(judged.obedient for judged in asked)}


shares = {"demonstrations": [], "SFT, prompts it has seen": [], "SFT, held-out wordings": []}
for begin in starts:
    demonstrations = begin.world.sft_rows
    shares["demonstrations"].append(habits(begin.world, [row["prompt"] for row in demonstrations],
                                           [row["response"] for row in demonstrations]))
    for name, prompts in (("SFT, prompts it has seen", begin.world.prompts),
                          ("SFT, held-out wordings", begin.world.heldout_prompts)):
        repeated, answers = sample_responses(begin.sft, prompts, samples, LONGEST_ANSWER,
                                             begin.seed)
        shares[name].append(habits(begin.world, repeated, [answer.text for answer in answers]))
kinds = list(shares["demonstrations"][0])
figure, axis = lesson.panels()
figure.set_size_inches(7, 3.4)
for number, (name, colour) in enumerate(zip(shares, (COLOURS[2], COLOURS[1], COLOURS[4]), strict=True)):
    heights = [[one[kind] for one in shares[name]] for kind in kinds]
    axis.bar([x + 0.27 * (number - 1) for x in range(len(kinds))], [mean(h) for h in heights], 0.25, label=name,
             yerr=[stdev(h) for h in heights], color=colour, error_kw={"linewidth": 1})
axis.set_xticks(range(len(kinds)), kinds)
axis.set(ylabel="share of the answers", ylim=(0, 1))
axis.legend(loc="upper right", fontsize=8)
gaps = {kind: mean(one[kind] for one in shares["SFT, prompts it has seen"])
        - mean(one[kind] for one in shares["demonstrations"]) for kind in kinds}
widest = max(gaps, key=lambda kind: abs(gaps[kind]))
rude = {name: [one["rude"] for one in shares[name]] for name in shares}
lesson.number("rude_demonstrations", rude["demonstrations"], ".2f")
lesson.number("rude_sft", rude["SFT, prompts it has seen"], ".2f")
lesson.number("right_sft_seen", [one["right"] for one in shares["SFT, prompts it has seen"]], ".2f")
lesson.number("widest_gap", f"{abs(gaps[widest]):.2f}")
lesson.number("widest_gap_at", widest)
lesson.figure("imitation", figure, f"SFT reproduces the demonstrators' habits: on prompts it has seen, no share is more "
              f"than {abs(gaps[widest]):.2f} from theirs (the widest: {widest}), rudeness included.")

# %% [markdown]
# ## The loop, in plain sight
# What `sft_train` does, but from examples, so that we can choose which bytes count.

# %%
def train(model: MiniGPT, examples: list[Example], seed: int, look=None, every: int = 50, **changes) -> MiniGPT:
    config = SFTConfig(**{**SFT, "seed": seed, **changes})
    batches = Batches(examples, config.batch_size, config.seed)
    loop = TrainingLoop({"model": model.train()}, config, batches, config.num_epochs * len(batches))
    optimizer, log = loop.optimizer, loop.log
    for batch in loop.whole_batches():                          # one optimizer step each
        if look is not None and loop.step % every == 0:
            look(loop.step)
        with optimizer.precision():
            loss, metrics = sft_loss(token_logps(model, batch), batch.response_mask)
        optimizer.backward(loss)
        log.add({"loss": loss, **metrics}, batch.weight)
        log.write({"grad_norm": optimizer.step()})              # clip, step
    if look is not None:
        look(loop.step)
    return model.eval()


def report(begin, model: MiniGPT) -> dict[str, float]:
    return {"loss": evaluate_loss(model, begin.world.heldout_sft_rows),
            "plain": evaluate_loss(model, heldout_plain(begin)), **begin.measure(model, samples)}


few = lesson.pick(4000, 48)  # demonstrations; half of what the course's SFT model has seen
lesson.number("few", f"{few:,}")

# %% [markdown]
# ## Score the prompt too; leave out EOS

# %%
masks = {"response and EOS": lambda example: example, "prompt too": all_scored,
         "response without EOS": lambda example: Example(example.prompt, (example.responses[0][:-1],))}
results = {name: [] for name in masks}
curves = {"no plain text": [], "5 % plain text": [], "30 % plain text": []}  # of the loss on plain text, for later
every = lesson.pick(50, 6)
plain_runs, seconds = [], []
for begin in starts:
    examples = sft_examples(begin.world.sft_rows[:few], LONGEST_ROW)
    heldout = heldout_plain(begin)
    for name, mask in masks.items():
        model, points = copy.deepcopy(begin.base), []
        look = None if name != "response and EOS" else (
            lambda step, m=model, p=points, h=heldout: p.append((step, evaluate_loss(m, h))))
        began = time.perf_counter()
        train(model, [mask(example) for example in examples], begin.seed, look, every)
        seconds.append(time.perf_counter() - began)
        results[name].append(report(begin, model))
        if look is not None:
            plain_runs.append(model)
            curves["no plain text"].append(points)
own = [example.responses[0] for example in sft_examples(world.sft_rows, LONGEST_ROW)]
read = [example.num_tokens for example in sft_examples(world.sft_rows, LONGEST_ROW)]
lesson.number("response_share", f"{sum(map(len, own)) / sum(read):.0%}")


def line(name: str, measured: list[dict[str, float]]) -> list[str]:
    forms = {"loss": ".2f", "plain": ".2f", "right_share": ".2f", "true_reward": ".2f", "finished_share": ".2f",
             "response_bytes": ".0f"}
    return [name, *(spread([one[key] for one in measured], form) for key, form in forms.items())]


HEAD = ["loss on responses", "loss on plain text", "right", "true reward", "finished", "bytes"]
lesson.table("masks", ["what counts", *HEAD], [line(name, measured) for name, measured in results.items()])
for name, short in (("response and EOS", "masked"), ("prompt too", "prompt_too"), ("response without EOS", "no_eos")):
    lesson.number(f"right_{short}", [one["right_share"] for one in results[name]], ".2f")
    lesson.number(f"plain_{short}", [one["plain"] for one in results[name]], ".2f")
    lesson.number(f"finished_{short}", [one["finished_share"] for one in results[name]], ".2f")
    lesson.number(f"reward_{short}", [one["true_reward"] for one in results[name]], ".2f")

# %% [markdown]
# ## Forgetting, and what helps against it

# %%
def mixed(begin, share: float) -> list[Example]:
    """The demonstrations, and so much plain text for each of them."""
    demonstrations = begin.world.sft_rows[:few]
    plain = begin.world.plain_text[:round(share * len(demonstrations))]
    return sft_examples(demonstrations + plain_text_rows(plain), LONGEST_ROW)


recipes = {
    "rate / 3": (0, {"lr": SFT["lr"] / 3}), "rate / 10": (0, {"lr": SFT["lr"] / 10}), "3 epochs": (0, {"num_epochs": 3}),
    "5 % plain text": (0.05, {}), "30 % plain text": (0.3, {}),
}
recipe_results = {"the recipe, no plain text": results["response and EOS"], **{name: [] for name in recipes}}
for begin in starts:
    heldout = heldout_plain(begin)
    for name, (share, changes) in recipes.items():
        model, points = copy.deepcopy(begin.base), []
        curve = curves.get(name)
        look = None if curve is None else lambda step, m=model, p=points, h=heldout: p.append((step, evaluate_loss(m, h)))
        recipe_results[name].append(report(begin, train(model, mixed(begin, share), begin.seed, look, every, **changes)))
        if curve is not None:
            curve.append(points)
base_plain = [evaluate_loss(begin.base, heldout_plain(begin)) for begin in starts]
lesson.table("forgetting", ["recipe", *HEAD], [line(name, measured) for name, measured in recipe_results.items()])
short_names = {"the recipe, no plain text": "recipe", "rate / 3": "third", "rate / 10": "tenth", "3 epochs": "epochs",
               "5 % plain text": "mix_5", "30 % plain text": "mix_30"}
for name, short in short_names.items():
    lesson.number(f"plain_after_{short}", [one["plain"] for one in recipe_results[name]], ".2f")
    lesson.number(f"right_after_{short}", [one["right_share"] for one in recipe_results[name]], ".2f")

# %%
lesson.number("first_look", str(every))
lesson.number("plain_first_look", [dict(points)[every] for points in curves["no plain text"]], ".2f")
lesson.number("plain_highest", [max(loss for _, loss in points) for points in curves["no plain text"]], ".2f")

figure, (left, right) = lesson.panels(2)
figure.set_size_inches(11, 3.7)
for (name, runs), colour in zip(curves.items(), (COLOURS[1], COLOURS[4], COLOURS[2]), strict=True):
    for number, points in enumerate(runs):
        left.plot(*zip(*points, strict=True), color=colour, label=name if number == 0 else None, linewidth=1.4)
left.axhline(mean(base_plain), color="grey", linestyle=":")
left.set(xlabel="optimizer step", ylabel="loss on held-out plain text (nats per byte)", yscale="log",
         title="While it trains")
left.legend(loc="center right")
shades = [COLOURS[number] for number in (1, 0, 5, 3, 4, 2)]  # the three on the left keep theirs
for (name, measured), colour in zip(recipe_results.items(), shades, strict=True):
    x, y = [one["plain"] for one in measured], [one["right_share"] for one in measured]
    right.errorbar(mean(x), mean(y), stdev(y), stdev(x), "o", color=colour, label=name, linewidth=1.2)
right.set(xlabel="loss on held-out plain text (nats per byte)", ylabel="right answers (share)", xscale="log",
          title="At the end")
right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
ticks, names = (0.1, 0.2, 0.5, 1, 2, 4), ("0.1", "0.2", "0.5", "1", "2", "4")
left.minorticks_off()
right.minorticks_off()
left.set_yticks(ticks, names)
right.set_xticks(ticks, names)
left.set_ylim(0.1, 5)
right.set_xlim(0.1, 5)
lesson.figure("forgetting", figure, f"Left: without plain text the loss on it rises from {mean(base_plain):.2f} to "
              f"{mean(one['plain'] for one in results['response and EOS']):.2f} nats a byte; with 5 % mixed in it ends at "
              f"{mean(one['plain'] for one in recipe_results['5 % plain text']):.2f}, with 30 % at "
              f"{mean(one['plain'] for one in recipe_results['30 % plain text']):.2f} (dotted: the base model). Right: mean "
              f"and spread over {len(seeds)} seeds; up and to the left is better.")

# %%
lesson.table("empty_prompt", ["model", "says to an empty prompt"],
             [[name, repr(generate(model, [""], 60, seed=3)[0].text)] for name, model in
              (("base", start.base), (f"SFT, {few:,} demonstrations, no plain text", plain_runs[0]),
               ("the course's SFT, 30 % plain text", start.sft))])

# %% [markdown]
# ## Rows of unlike lengths: padding

# %%
rows = sft_examples(world.sft_rows, LONGEST_ROW)
lengths = [example.num_tokens for example in rows]


def padding(batch_size: int, pool_batches: int) -> float:
    """Share of an epoch's columns that hold PAD."""
    batches = Batches(rows, batch_size, 0, pool_batches)
    made = [batches.collate(numbers) for numbers in batches.epoch(0)]
    return 1 - sum(lengths) / sum(batch.token_ids.numel() for batch in made)


def packed(longest: int) -> float:
    """The same if rows are put behind each other: the longest first, each where it leaves the least room."""
    room = [0] * (longest + 1)  # how many rows have so many columns left
    for length in sorted(lengths, reverse=True):
        fits = next((left for left in range(length, longest) if room[left]), None)
        if fits is None:
            room[longest - length] += 1
        else:
            room[fits], room[fits - length] = room[fits] - 1, room[fits - length] + 1
    return 1 - sum(lengths) / (sum(room) * longest)


sizes = (8, 64)
ways = {"all to the longest possible row": [1 - mean(lengths) / LONGEST_ROW] * 2,
        "to the longest of its batch": [padding(size, 1) for size in sizes],
        "batches of like length (ours)": [padding(size, 32) for size in sizes],
        f"packed into rows of {LONGEST_ROW}": [packed(LONGEST_ROW)] * 2}
figure, axis = lesson.panels(height=2.8)
figure.set_size_inches(7, 2.8)
for number, (size, colour) in enumerate(zip(sizes, COLOURS, strict=False)):
    axis.barh([y + 0.2 * (1 - 2 * number) for y in range(len(ways))], [100 * way[number] for way in ways.values()], 0.36,
              color=colour, label=f"batches of {size}")
axis.set_yticks(range(len(ways)), ways)
axis.set(xlabel="padding (% of the columns computed)")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
axis.invert_yaxis()
sorted_share, unsorted_share = ways["batches of like length (ours)"][0], ways["to the longest of its batch"][0]
lesson.number("mean_length", f"{mean(lengths):.0f}")
lesson.number("longest_length", str(max(lengths)))
lesson.number("padding_fixed", f"{1 - mean(lengths) / LONGEST_ROW:.0%}")
lesson.number("padding_unsorted", f"{unsorted_share:.0%}")
lesson.number("padding_sorted", f"{sorted_share:.0%}")
lesson.number("padding_packed", f"{packed(LONGEST_ROW):.0%}")
lesson.figure("padding", figure, f"In batches of {sizes[0]}, {unsorted_share:.0%} of the columns are padding if rows come "
              f"in any order, and {sorted_share:.0%} if rows of similar length come together.")

# %% [markdown]
# ## Packing: what a row sees of its neighbour

# %%
def loss_behind(model: MiniGPT, first: Example, second: Example, strangers: bool) -> float:
    """Surprise of the second row's response when it stands behind the first row, in nats."""
    a, b = first.prompt + first.responses[0], second.prompt + second.responses[0]
    ids = torch.tensor([[*a, *b]])
    positions = visible = None  # plain causal attention, positions that go on
    if strangers:
        positions = torch.tensor([[*range(len(a)), *range(len(b))]])
        row = torch.tensor([0] * len(a) + [1] * len(b))
        visible = (row[:, None] == row[None, :]).tril()[None]
    with torch.no_grad():
        logits = model.logits(model.hidden_states(ids, positions, visible))[0]
    own = len(second.responses[0])
    return -float(logps_of(logits[-own - 1:-1], ids[0, -own:]).sum())


loss_alone, loss_packed, loss_strangers = [], [], []
for begin in starts:
    heldout = sft_examples(begin.world.heldout_sft_rows[:lesson.pick(32, 4)], LONGEST_ROW)
    pairs = [(first, second) for first in heldout for second in heldout[:8]
             if first is not second and first.num_tokens + second.num_tokens <= LONGEST_ROW]
    tokens = sum(len(second.responses[0]) for _, second in pairs)
    nothing = Example(b"", (b"",))
    for losses, neighbour in ((loss_alone, None), (loss_packed, False), (loss_strangers, True)):
        losses.append(sum(loss_behind(begin.sft, nothing if neighbour is None else first, second, bool(neighbour))
                          for first, second in pairs) / tokens)
lesson.number("loss_alone", loss_alone, ".3f")
lesson.number("loss_packed", loss_packed, ".3f")
lesson.number("loss_strangers", loss_strangers, ".3f")

# %% [markdown]
# ## A mean of means is not the mean: gradient accumulation

# %%
batches = Batches(mixed(start, 0.3), 32, 0, pool_batches=1)


def gradient(model: MiniGPT, pieces: list[list[int]], shares: list[float]) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of a batch that comes in pieces, each counted by its share."""
    model.zero_grad()
    total = 0.0
    for piece, share in zip(pieces, shares, strict=True):
        batch = batches.collate(piece)
        loss, _ = sft_loss(token_logps(model, batch), batch.response_mask)
        (share * loss).backward()
        total += share * loss.item()
    return total, torch.cat([weight.grad.flatten() for weight in model.parameters()])


errors = {"by tokens": [], "mean of means": [], "not divided": []}
example_losses = {}
for numbers in batches.epoch(0)[:lesson.pick(20, 2)]:
    pieces = [numbers[place:place + 8] for place in range(0, len(numbers), 8)]
    tokens = [sum(len(batches.examples[number].responses[0]) for number in piece) for piece in pieces]
    whole_loss, whole = gradient(start.sft, [numbers], [1.0])
    for name, counts in (("by tokens", [count / sum(tokens) for count in tokens]),
                         ("mean of means", [1 / len(pieces)] * len(pieces)), ("not divided", [1.0] * len(pieces))):
        loss, grad = gradient(start.sft, pieces, counts)
        errors[name].append(float((grad - whole).norm() / whole.norm()))
        example_losses.setdefault(name, (loss, tokens))
    example_losses.setdefault("in one piece", (whole_loss, tokens))
lesson.table("accumulation", ["each piece counts", "loss of one batch (nats per byte)", "error of the gradient, mean"],
             [["(one piece)", f"{example_losses['in one piece'][0]:.4f}", "0"],
              ["by its response tokens", f"{example_losses['by tokens'][0]:.4f}", f"{mean(errors['by tokens']):.1e}"],
              ["the same: mean of means", f"{example_losses['mean of means'][0]:.4f}",
               f"{mean(errors['mean of means']):.0%}"],
              ["1: not divided", f"{example_losses['not divided'][0]:.4f}", f"{mean(errors['not divided']):.0%}"]])
lesson.number("piece_tokens", ", ".join(map(str, example_losses["by tokens"][1])))
lesson.number("error_means", f"{mean(errors['mean of means']):.0%}")
one_word = [example for example, row in zip(rows, world.sft_rows, strict=True) if len(WORD.findall(row["response"])) == 1]
lesson.number("one_word_rows", f"{len(one_word) / len(rows):.0%}")
lesson.number("one_word_tokens", f"{sum(len(example.responses[0]) for example in one_word) / sum(map(len, own)):.0%}")

# %%
whole_losses, piece_losses = (
    sft_train(copy.deepcopy(start.base), world.sft_rows[:160], batch_size=32, accumulate=accumulate,
              lr=SFT["lr"], precision="float32")[1] for accumulate in (1, 4))
lesson.number("accumulate_difference", max(abs(a - b) for a, b in zip(whole_losses, piece_losses, strict=True)), ".0e")

# %% [markdown]
# ## What it costs

# %%
weights = start.base.count_parameters()
plain_tokens = sum(example.num_tokens for example in
                   sft_examples(plain_text_rows(world.plain_text), LONGEST_ROW))
sft_tokens = sum(lengths)
lesson.number("weights", f"{weights:,}")
lesson.number("base_tokens", f"{plain_tokens:,}")
lesson.number("sft_tokens", f"{sft_tokens:,}")
lesson.number("base_flops", f"{6 * weights * plain_tokens:.1e}".replace("e+", "e"))
lesson.number("sft_flops", f"{6 * weights * sft_tokens:.1e}".replace("e+", "e"))
lesson.number("sft_over_base", sft_tokens / plain_tokens, ".2f")
lesson.number("tokens_per_weight", plain_tokens / weights, ".1f")
few_tokens = sum(lengths[:few])
fastest = min(seconds)
lesson.number("seconds_few", fastest, ".1f")
lesson.number("gflops", 6 * weights * few_tokens / fastest / 1e9, ".0f")
lesson.number("base_rate", f"{BASE['lr']:g}")
lesson.number("sft_rate", f"{SFT['lr']:g}")

batches = Batches(rows, 8)
batch = batches.collate(batches.epoch(0)[0])
with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
    loss, _ = sft_loss(token_logps(start.fresh_policy(), batch), batch.response_mask)
    loss.backward()
lesson.number("counted_share", f"{counter.get_total_flops() / (6 * weights * int(batch.lengths.sum())):.0%}")

# %% [markdown]
# ## The whole of it

# %%
figure, axis = lesson.panels(height=3.2)
figure.set_size_inches(8.5, 3.2)
draw_pipeline(axis, {
    "demonstrations": Box(0, 0, "demonstrations", "data"), "plain": Box(0, 1.35, "a little\nplain text", "data"),
    "batch": Box(1.15, 0, "prompt SEP\nresponse EOS", "data"), "model": Box(2.3, 0, "MiniGPT\n(begins as base)", "trained"),
    "logps": Box(3.45, 0, "log p of each\nresponse byte", "data"),
    "loss": Box(3.45, 1.35, "loss: mean\nwhere m = 1", "data"),
}, [("demonstrations", "batch", "encode"), ("plain", "batch", "mix"), ("batch", "model", "(B, T)"),
    ("model", "logps", "(B, T)"), ("logps", "loss", "mask m"), ("loss", "model", "gradient")])
lesson.figure("pipeline", figure, "One model in memory, and it is trained; nothing is frozen, nothing is sampled.")
lesson.done()
