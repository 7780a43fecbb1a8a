"""The runs behind the article, on five seeds:  python -m lessons 02 --experiments"""

import copy
from collections.abc import Callable, Sequence
from statistics import mean

import torch

from data.examples import sft_examples
from data.layouts import read_demonstrations
from data.world import FREE_WORDS, World
from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, SFT, Start, starting_point
from minigpt import EOS, MiniGPT, decode, encode
from minigpt.batching import Batches
from minigpt.evaluation import sample_responses
from minigpt.examples import Example
from minigpt.logprobs import token_logps
from minigpt.sampling import sample_ids
from minigpt.training import TrainingLoop
from sft.evaluate import evaluate_loss
from sft.loss import sft_loss
from sft.start import plain_text_rows
from sft.train import SFTConfig

lesson = Lesson("02_sft", "experiments")
starts = [starting_point(seed, quick=lesson.quick)
          for seed in lesson.pick((0, 1, 2, 3, 4), (0, 1))]
LONGEST_ROW = starts[0].base.max_seq_len
FEW = lesson.pick(2000, 48)      # demonstrations of each run; the course's SFT model has read 8000
EVERY = lesson.pick(25, 3)       # steps between two looks at the loss on plain text
SAMPLES = lesson.pick(16, 1)     # answers to each prompt
Mask = Callable[[Example], Example]


# --- how others write a demonstration down, and what it becomes here ---

human = {"from": "human", "value": "Name a fruit."}
gpt = {"from": "gpt", "value": "Pear."}
layouts = {
    "columns": {"prompt": "Name a fruit.", "response": "Pear."},
    "Alpaca": {"instruction": "Name a fruit.", "input": "It must be green.", "output": "Pear."},
    "ShareGPT, two turns": {"conversations": [
        human, gpt, {"from": "human", "value": "Another."}, {"from": "gpt", "value": "Plum."}]},
    "messages, with a system prompt": {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Pear."}]},
    "ChatML, one text": {"text": "<|im_start|>user\nName a fruit.<|im_end|>\n"
                                 "<|im_start|>assistant\nPear.<|im_end|>"},
}
lesson.keep("layouts", [[name, repr(record["prompt"]), repr(record["response"])]
                        for name, row in layouts.items()
                        for record in read_demonstrations(row, name).records])


# --- base model, SFT model, and demonstrators, asked the same ---

def go_on(model: MiniGPT, prompts: Sequence[str], seed: int) -> list[str]:
    """What the model writes behind each prompt as plain text, to the end of the first sentence."""
    ids = [[EOS, *encode(prompt + " ")] for prompt in prompts]
    answers = sample_ids(model, ids, LONGEST_ANSWER, generator=torch.Generator().manual_seed(seed))
    return [decode(answer).split(".")[0] + "." for answer in answers]


def asked(start: Start) -> dict[str, dict[str, float]]:
    """Name -> true reward and share of right answers, to held-out prompts."""
    world, rows = start.world, start.world.sft_rows
    prompts = [prompt for prompt in world.heldout_prompts for _ in range(SAMPLES)]
    return {"base_after_sep": start.measure(start.base, SAMPLES),
            "base_goes_on": world.measure(prompts, go_on(start.base, prompts, start.seed)),
            "sft": start.measure(start.sft, SAMPLES),
            "demonstrations": world.measure([row["prompt"] for row in rows],
                                            [row["response"] for row in rows])}


def losses(start: Start, model: MiniGPT) -> dict[str, float]:
    plain = start.world.heldout_plain_text[:lesson.pick(200, 8)]
    return {"loss": evaluate_loss(model, start.world.heldout_sft_rows),
            "plain": evaluate_loss(model, plain_text_rows(plain))}


lesson.keep("asked", [asked(start) for start in lesson.progress(starts, "asking")])
lesson.keep("losses", [{"base": losses(start, start.base), "sft": losses(start, start.sft)}
                       for start in starts])


# --- it imitates what it is shown, good and bad ---

def habits(world: World, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Which share of these answers is ..."""
    seen = [world.judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    with_form = [judged for prompt, judged in zip(prompts, seen, strict=True)
                 if prompt.startswith("In ")]
    return {"right": mean(judged.right for judged in seen),
            "evasive": mean(judged.evasive for judged in seen),
            "polite": mean(judged.tone == "polite" for judged in seen),
            "rude": mean(judged.tone == "rude" for judged in seen),
            "rambling": mean(judged.words > FREE_WORDS for judged in seen),
            "obedient": mean(judged.obedient for judged in with_form)}


def imitation(start: Start) -> dict[str, dict[str, float]]:
    world, rows = start.world, start.world.sft_rows
    found = {"demonstrations": habits(world, [row["prompt"] for row in rows],
                                      [row["response"] for row in rows])}
    for name, prompts in (("seen", world.prompts), ("held-out", world.heldout_prompts)):
        prompts, answers = sample_responses(start.sft, prompts, SAMPLES, LONGEST_ANSWER, start.seed)
        found[name] = habits(world, prompts, [answer.text for answer in answers])
    return found


lesson.keep("imitation", [imitation(start) for start in lesson.progress(starts, "imitation")])


# --- which bytes count, and what is forgotten ---

def all_scored(example: Example) -> Example:
    """The same bytes in the same places, and all but the first count as response."""
    return Example(example.prompt[:1], (example.prompt[1:] + example.responses[0],))


def without_eos(example: Example) -> Example:
    return Example(example.prompt, (example.responses[0][:-1],))


def train(start: Start, examples: Sequence[Example], watch: bool,
          **changes) -> tuple[MiniGPT, list]:
    """What `sft_train` does, from examples, so that we can choose which bytes count.

    Returns the model and, if we watch, its loss on plain text on the way: [step, loss].
    """
    model, looks = copy.deepcopy(start.base), []
    config = SFTConfig(**{**SFT, "seed": start.seed, **changes})
    batches = Batches(examples, config.batch_size, config.seed)
    loop = TrainingLoop({"model": model.train()}, config, batches, len(batches))
    for batch in loop.whole_batches():                          # one optimizer step each
        if watch and loop.step % EVERY == 0:
            looks.append([loop.step, losses(start, model)["plain"]])
        loss, metrics = sft_loss(token_logps(model, batch), batch.response_mask)
        loop.optimizer.backward(loss)
        loop.log.add({"loss": loss, **metrics}, batch.weight)
        loop.log.write({"grad_norm": loop.optimizer.step()})    # clip, step
    return model.eval(), looks


def run(start: Start, mask: Mask = lambda example: example, plain_share: float = 0.0,
        watch: bool = False, **changes) -> dict[str, object]:
    """One training run, measured."""
    rows = start.world.sft_rows[:FEW]
    rows = rows + plain_text_rows(start.world.plain_text[:round(plain_share * FEW)])
    examples = [mask(example) for example in sft_examples(rows, LONGEST_ROW)]
    model, looks = train(start, examples, watch, **changes)
    return {"looks": looks, **losses(start, model), **start.measure(model, SAMPLES)}


settings = {
    "response and EOS": {"watch": True},
    "prompt too": {"mask": all_scored},
    "response without EOS": {"mask": without_eos},
    "rate / 75": {"lr": SFT["lr"] / 75},
    "rate / 10": {"lr": SFT["lr"] / 10},
    "rate x 16": {"lr": SFT["lr"] * 16},
    "5 % plain text": {"plain_share": 0.05, "watch": True},
    "30 % plain text": {"plain_share": 0.3, "watch": True},
}
jobs = [(name, start) for name in settings for start in starts]
runs = {name: [] for name in settings}
for name, start in lesson.progress(jobs, "training runs"):
    runs[name].append(run(start, **settings[name]))
lesson.keep("runs", runs)

rows = [example for start in starts for example in sft_examples(start.world.sft_rows, LONGEST_ROW)]
lesson.keep("response_share", sum(len(row.responses[0]) for row in rows)
            / sum(row.num_tokens for row in rows))
lesson.done()
