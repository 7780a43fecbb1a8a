"""Talk to trained models, side by side:  python -m minigpt.chat runs/sft/model.pt runs/dpo/model.pt

Each model answers each question.  Beside an answer stand log pi/ref, how much likelier it is than
under the first model, in nats; the score of a reward model (--reward); and the true reward, where
the question is one of the little world's.  With --tokens each byte is coloured by its log pi/ref,
which is DPO's implicit reward, token by token.  In the chat, /temperature 0.5, /greedy, /seed 3,
/max-new-tokens 40 and /tokens change a setting, and Ctrl-D leaves.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.world import World, WorldConfig, all_questions
from lessons.course import LESSONS
from minigpt.batching import collate
from minigpt.checkpoint import load_checkpoint
from minigpt.command import check_device, load_model, run_command
from minigpt.errors import UserError
from minigpt.examples import tokenize_example
from minigpt.logprobs import token_logps
from minigpt.model import MiniGPT
from minigpt.options import Settings, option, parse
from minigpt.sampling import Response, generate
from minigpt.seeding import LARGEST_SEED
from minigpt.tokenizer import EOS
from reward.combine import Ensemble
from reward.evaluate import score
from reward.model import RewardModel

FOUND = ("sft", "ppo", "dpo")  # what a run of lessons.compare holds
# Backgrounds of a terminal of 256 colours, from likelier under the reference to likelier under the
# model: orange over white to blue, which colour-blind people tell apart, too.
PALETTE = (208, 215, 223, 255, 153, 111, 69)
STEP = 0.5  # nats from one colour to the next


@dataclass
class ChatConfig(Settings):
    models: list[str] | None = option(None, "checkpoints that answer; log pi/ref compares with the "
                                            "first (by default those of runs/compare, "
                                            "else those that come with the lessons)",
                                      positional=True)
    prompt: str | None = option(None, "answer this once, and leave")
    reward: str | None = option(None, "checkpoint of a reward model that scores each answer (by "
                                      "default the one beside those models)")
    temperature: float = option(1.0, "of sampling", above=0)
    greedy: bool = option(False, "give the most likely answer instead of sampling one")
    seed: int = option(0, "seed of the first answer; each further question takes the next",
                       at_least=0, at_most=LARGEST_SEED)
    max_new_tokens: int = option(96, "longest answer, in tokens", at_least=1)
    tokens: bool = option(False, "colour each byte by its log pi/ref (on a terminal)")
    device: str = option("cpu", "cpu, cuda or mps")


CHANGEABLE = ("temperature", "greedy", "seed", "max_new_tokens", "tokens")


class Speaker(NamedTuple):
    """A model and what it is called."""

    name: str
    path: str
    model: MiniGPT


def main(argv: Sequence[str] | None = None) -> None:
    config, = parse(__doc__, argv, ChatConfig)
    speakers = list(load_speakers(config))
    scorer = config.reward or (None if config.models else where_found("reward"))
    reward: Any = None if scorer is None else load_model(scorer, (RewardModel, Ensemble),
                                                         "--reward", config.device)
    world = World(WorldConfig(facts=len(all_questions())))  # knows every question
    if config.prompt is not None:
        answer(config.prompt, speakers, reward, world, config)
        return
    for speaker in speakers:
        print(f"{speaker.name}: {speaker.path}, {speaker.model.count_parameters():,} weights")
    print("Ask something, such as 'Capital of Norway?' (/help for more, Ctrl-D to leave)")
    chat(speakers, reward, world, config)


def load_speakers(config: ChatConfig) -> Iterator[Speaker]:
    """The models to talk to.  Raises UserError if there is none, or one that cannot speak."""
    paths = config.models or [path for path in map(where_found, FOUND) if path]
    if not paths:
        raise UserError("there are no models to talk to: name their checkpoints, or make some with "
                        "python -m lessons.compare")
    check_device(config.device)
    for name, path in zip(names_of(paths), paths, strict=True):
        try:
            model = load_checkpoint(path)
        except FileNotFoundError as error:
            raise UserError(f"{path}: there is no such file") from error
        if not isinstance(model, MiniGPT):
            raise UserError(f"{path} holds a {type(model).__name__}, which scores answers and "
                            "cannot give any: name it as --reward")
        yield Speaker(name, path, model.to(config.device))


def where_found(name: str) -> str | None:
    """The checkpoint of this name in runs/compare, or else the one that comes with the lessons."""
    compared = [f"runs/compare/{other}/model.pt" for other in (*FOUND, name)]
    paths = compared if any(map(os.path.exists, compared)) else [f"{LESSONS}/models/{name}.pt"]
    return paths[-1] if os.path.exists(paths[-1]) else None


def names_of(paths: Sequence[str]) -> list[str]:
    """dpo for dpo/model.pt and for dpo.pt; whole paths if two would have the same name."""
    resolved = [Path(path).resolve() for path in paths]
    names = [path.parent.name if path.stem == "model" else path.stem for path in resolved]
    return names if len(set(names)) == len(names) else list(paths)


def chat(speakers: Sequence[Speaker], reward: RewardModel | Ensemble | None, world: World,
         config: ChatConfig) -> None:
    """Questions and answers until Ctrl-C or Ctrl-D; what goes wrong is said, and it goes on."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - arrow keys and history for input()
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        try:
            if line.startswith("/"):
                config = changed(config, line)
            elif line:
                answer(line, speakers, reward, world, config)
                config = replace(config, seed=config.seed + 1)
        except (UserError, FloatingPointError) as error:
            print(f"  {error}")


def changed(config: ChatConfig, line: str) -> ChatConfig:
    """The settings after a line such as '/temperature 0.5' or '/greedy'."""
    name, _, value = line[1:].partition(" ")
    name = name.replace("-", "_")
    if name not in CHANGEABLE:
        raise UserError("you can change " + ", ".join(
            f"/{key.replace('_', '-')} ({getattr(config, key)})" for key in CHANGEABLE))
    now = getattr(config, name)
    if isinstance(now, bool):
        new: Any = not now
    else:
        try:
            new = type(now)(value)
        except ValueError:
            raise UserError(f"/{name.replace('_', '-')} needs a number, such as {now}") from None
    setting: dict[str, Any] = {name: new}
    return replace(config, **setting)


def answer(prompt: str, speakers: Sequence[Speaker], reward: RewardModel | Ensemble | None,
           world: World, config: ChatConfig) -> None:
    """Print each model's answer to the prompt, and what can be said about it."""
    width = max(len(speaker.name) for speaker in speakers)
    reference = speakers[0].model
    for speaker in speakers:
        response, = generate(speaker.model, [prompt], config.max_new_tokens, config.temperature,
                             greedy=config.greedy, seed=config.seed)
        log_ratios = token_log_ratios(speaker.model, reference, prompt, response)
        notes = [f"log pi/ref {sum(log_ratios):+.1f}"] * (speaker.model is not reference)
        if reward is not None:
            notes.append(f"score {float(score(reward, [prompt], [response.ids])):+.2f}")
        if prompt in world.prompt_texts:
            notes.append(f"true reward {world.true_reward(prompt, response.text):+.1f}")
        text = coloured(response, log_ratios) if config.tokens and sys.stdout.isatty() \
            else response.text
        print(f"{speaker.name:>{width}}: {text}" + " [did not end]" * (not response.finished)
              + (f"   ({', '.join(notes)})" if notes else ""))


def token_log_ratios(model: MiniGPT, reference: MiniGPT, prompt: str,
                     response: Response) -> list[float]:
    """log pi/ref of each token of the response, EOS included, in nats.

    Raises NoRoomError if the prompt does not fit the reference.
    """
    longest = min(model.max_seq_len, reference.max_seq_len)
    batch = collate([tokenize_example(prompt, [response.ids], longest)]).to(model.device)
    ratios = token_logps(model, batch) - token_logps(reference, batch)
    return ratios[batch.response_mask].tolist()


def coloured(response: Response, log_ratios: Sequence[float]) -> str:
    """The text, each character on the colour of its bytes' summed log pi/ref; for a terminal."""
    parts, character, total = [], b"", 0.0
    for token, ratio in zip(response.ids, log_ratios, strict=False):
        if token == EOS:
            character, total = "\N{WHITE SQUARE}".encode(), ratio
        else:
            character, total = character + bytes([token]), total + ratio
        try:
            text = character.decode()
        except UnicodeDecodeError:  # more bytes of it follow
            continue
        middle = len(PALETTE) // 2
        colour = PALETTE[max(-middle, min(middle, round(total / STEP))) + middle]
        parts.append(f"\x1b[48;5;{colour};38;5;16m{text}")
        character, total = b"", 0.0
    return "".join(parts) + "\x1b[0m"


if __name__ == "__main__":
    run_command(main)
