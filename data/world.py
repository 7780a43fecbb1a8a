"""A little world in which the true reward of every answer is known.

Users ask short questions; demonstrators answer them, rightly or wrongly, briefly or at length,
politely or rudely.  A true reward scores any text as an answer, including what a model makes up.
Annotators compare two answers by Bradley-Terry on that reward, so the best accuracy that any model
can reach on their labels is known too:

    P(first is chosen) = sigmoid((r(first) - r(second)) / temperature)
    Bayes accuracy     = E[max(P, 1 - P)]

Every question can be asked in eight ways.  Two of them are held out: they are the held-out prompts,
and no training data has them as a prompt.  The same questions in their other wordings do occur in
the plain text, the demonstrations and the preferences.  So held-out figures measure transfer to
another wording, not to facts that were never taught.  Everything is determined by the seed.
"""

import math
import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any, NamedTuple

from data.facts import (
    CAPITALS,
    COLOURS,
    FIRST_OPERANDS,
    OPPOSITES,
    SECOND_OPERANDS,
    WORDS,
    YOUNG_ANIMALS,
)
from minigpt.errors import UserError
from minigpt.options import Settings, option

ORDINALS = ("first", "last")

# --- questions ------------------------------------------------------------------------------------


class Question(NamedTuple):
    family: str
    answer: str
    wordings: tuple[str, ...]  # four plain ways to ask it
    statement: str             # the fact as plain text


class Prompt(NamedTuple):
    text: str
    question: Question
    manner: str  # the form of answer asked for: "plain", "one word" or "sentence"


MANNERS = {"plain": "", "one word": "In one word: ", "sentence": "In a sentence: "}


def all_questions() -> list[Question]:
    """Every question of the world, in a fixed order that groups the families."""
    questions = []

    def add(family: str, answer: object, statement: str, *wordings: str) -> None:
        questions.append(Question(family, str(answer), wordings, statement))

    for country, city in CAPITALS.items():
        add("capital", city, f"The capital of {country} is {city}.",
            f"What is the capital of {country}?", f"Name the capital of {country}.",
            f"Which city is the capital of {country}?", f"Capital of {country}?")
    for word, opposite in OPPOSITES.items():
        add("opposite", opposite, f"The opposite of {word} is {opposite}.",
            f"What is the opposite of {word}?", f"Name the opposite of {word}.",
            f"Which word is the opposite of {word}?", f"Opposite of {word}?")
    for animal, young in YOUNG_ANIMALS.items():
        add("young", young, f"The young of the {animal} is the {young}.",
            f"What is the young of the {animal}?", f"Name the young of the {animal}.",
            f"Which is the young of the {animal}?", f"Young of the {animal}?")
    for thing, colour in COLOURS.items():
        add("colour", colour, f"The colour of {thing} is {colour}.",
            f"What is the colour of {thing}?", f"Name the colour of {thing}.",
            f"Which shade is the colour of {thing}?", f"Colour of {thing}?")
    for a in FIRST_OPERANDS:
        for b in SECOND_OPERANDS:
            add("sum", a + b, f"The sum of {a} and {b} is {a + b}.",
                f"What is {a} plus {b}?", f"Work out {a} plus {b}.",
                f"How much is {a} plus {b}?", f"Sum of {a} plus {b}?")
    for word in WORDS:
        for ordinal, letter in zip(ORDINALS, (word[0], word[-1]), strict=True):
            add("letter", letter, f"The {ordinal} letter of {word} is {letter}.",
                f"What is the {ordinal} letter of {word}?", f"Name the {ordinal} letter of {word}.",
                f"Which is the {ordinal} letter of {word}?",
                f"{ordinal.capitalize()} letter of {word}?")
    return questions


def prompts_of(question: Question) -> list[Prompt]:
    """Its eight prompts: four plain ones, and two for each form of answer."""
    plain = [Prompt(text, question, "plain") for text in question.wordings]
    return plain + [Prompt(MANNERS[manner] + text, question, manner)
                    for manner in ("one word", "sentence") for text in question.wordings[:2]]


# --- answers --------------------------------------------------------------------------------------

POLITE = ("Happy to help!", "You are welcome!", "Glad you asked!")
RUDE = ("Any fool knows.", "Stop bothering me.", "Duh, empty head.")
RAMBLING = ("And so on, and so on.", "But there is so much more.", "Let me think of other things.")
EVASIVE = ("I would rather not say.", "Nobody can know that.", "That depends on many things.")
CORES = {"plain": "It is {}.", "one word": "{}.", "sentence": "The answer is {}."}

HELDOUT_WORDINGS = 2  # of the eight prompts of each question
EDITED_SHARE = 0.75   # of the pairs: the two answers differ in one attribute only

POLITE_WORDS = frozenset(["happy", "welcome", "glad", "please", "thanks", "thank"])
RUDE_WORDS = frozenset(["duh", "fool", "bothering", "stupid", "idiot"])


class Style(NamedTuple):
    """The attributes of an answer."""

    correctness: str  # "right", "wrong" or "evasive"
    tone: str         # "polite", "neutral" or "rude"
    rambling: bool
    obedient: bool


@dataclass
class Judgement:
    """What the true reward finds in a text."""

    right: bool
    evasive: bool      # names no answer of the question's family
    obedient: bool
    tone: str
    words: int
    unknown_words: int
    complete: bool

    @property
    def faults(self) -> list[str]:
        """What lowers the reward of this answer, the heaviest faults first."""
        found = {"wrong": not self.right and not self.evasive, "evasive": self.evasive,
                 "rude": self.tone == "rude", "ignores the request": not self.obedient,
                 "rambling": self.words > FREE_WORDS, "not polite": self.tone == "neutral"}
        return [fault for fault, present in found.items() if present]


# --- the true reward ------------------------------------------------------------------------------

RIGHT, NO_ANSWER, WRONG = 2.0, -1.0, -2.0
DISOBEDIENT = -1.5
FREE_WORDS, EACH_WORD_MORE = 7, -0.15  # a word costs nothing up to the seventh
UNKNOWN_WORD, INCOMPLETE = -0.5, -0.5
TONES = {"polite": 1.0, "neutral": 0.0, "rude": -1.5}
WORST = -6.0  # lower bound of the helpful dimension, so that one outlier cannot decide a mean

WORD = re.compile(r"[^\W_]+")


@dataclass
class WorldConfig(Settings):
    """How much data there is, and how the annotators judge."""

    facts: int = option(42, "facts to ask about; fewer are learned sooner", at_least=1)
    plain_rows: int = option(14000, "paragraphs of plain text for the base model", at_least=1)
    sft_rows: int = option(15000, "demonstrations", at_least=1)
    preference_rows: int = option(16000, "preference pairs to train on", at_least=1)
    heldout_rows: int = option(1500, "held-out preference pairs", at_least=1)
    temperature: float = option(0.35, "of the annotators: at 0.1 nearly always right, at 10 "
                                      "nearly a coin toss", above=0)
    label_noise: float = option(0.0, "share of the training labels that are flipped (1: all)",
                                at_least=0, at_most=1)
    length_bias: float = option(0.0, "extra reward per 10 words in the training labels")
    helpful_weight: float = option(1.0, "weight of the helpful dimension in the true reward")
    polite_weight: float = option(1.0, "weight of the polite dimension in the true reward")
    label_helpful_weight: float | None = option(
        None, "weight of the helpful dimension in the labels of the training pairs (by default "
              "that of the true reward)")
    label_polite_weight: float | None = option(
        None, "weight of the polite dimension in the labels of the training pairs (by default "
              "that of the true reward)")


class World:
    """Prompts, demonstrations, preference pairs, and the true reward (see the top of this file).

    prompts, heldout_prompts:           texts
    sft_rows, heldout_sft_rows:         {"prompt", "response"}
    preferences, heldout_preferences:   {"prompt", "chosen", "rejected"}
    plain_text, heldout_plain_text:     texts

    Raises UserError if a setting is out of range.
    """

    def __init__(self, config: WorldConfig | None = None, seed: int = 0):
        self.config, self.seed = config or WorldConfig(), seed
        known = all_questions()
        if not 1 <= self.config.facts <= len(known):
            raise UserError(f"facts={self.config.facts} must be between 1 and {len(known)}")
        self.questions = [known[i * len(known) // self.config.facts]  # spread over the families
                          for i in range(self.config.facts)]
        self._answers = {family: {q.answer for q in known if q.family == family}
                         for family in dict.fromkeys(q.family for q in known)}
        self._by_text = {p.text: p for q in self.questions for p in prompts_of(q)}
        rng = self._rng("split")
        self._training: list[Prompt] = []
        self._heldout: list[Prompt] = []
        for question in self.questions:
            prompts = prompts_of(question)
            heldout = rng.sample(prompts, HELDOUT_WORDINGS)
            self._heldout += heldout
            self._training += [p for p in prompts if p not in heldout]
        self.prompts = [p.text for p in self._training]
        self.heldout_prompts = [p.text for p in self._heldout]

    @property
    def prompt_texts(self) -> Collection[str]:
        """Every prompt that has a true reward."""
        return self._by_text.keys()

    def question(self, prompt: str) -> str:
        """The question that a prompt asks, as a key: its first wording.

        Raises KeyError if the prompt is not one of the world's.
        """
        return self._by_text[prompt].question.wordings[0]

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    # --- writing answers --------------------------------------------------------------------------

    def sample_style(self, rng: random.Random) -> Style:
        """The style of one demonstration: mostly right, in any tone, often too long."""
        return Style(rng.choices(("right", "wrong", "evasive"), (0.75, 0.18, 0.07))[0],
                     rng.choices(("polite", "neutral", "rude"), (0.3, 0.4, 0.3))[0],
                     rng.random() < 0.35, rng.random() < 0.7)

    def edit_style(self, prompt: Prompt, style: Style, rng: random.Random) -> Style:
        """The style with one attribute changed, most often its correctness."""
        choices: dict[str, tuple] = {
            "correctness": ("right", "wrong"), "tone": ("polite", "neutral", "rude"),
            "rambling": (True, False), "obedient": (True, False)}
        can_disobey = prompt.manner != "plain"
        name, = rng.choices(list(choices), (3, 1, 1, can_disobey))
        others = [value for value in choices[name] if value != getattr(style, name)]
        changed: dict[str, Any] = {name: rng.choice(others)}
        return style._replace(**changed)

    def write_answer(self, prompt: Prompt, style: Style, rng: random.Random) -> str:
        """An answer to the prompt in this style.

        Every style draws the same numbers, so from the same generator state two styles get the same
        wording wherever they agree.
        """
        wrong = rng.choice(sorted(self._answers[prompt.question.family] - {prompt.question.answer}))
        other_manner = rng.choice([manner for manner in CORES if manner != prompt.manner])
        evasion = rng.choice(EVASIVE)
        ramble = rng.choice(RAMBLING)
        tone = {"polite": rng.choice(POLITE), "neutral": "", "rude": rng.choice(RUDE)}[style.tone]
        core = CORES[prompt.manner if style.obedient else other_manner]
        text = {"right": core.format(prompt.question.answer), "wrong": core.format(wrong),
                "evasive": evasion}[style.correctness]
        if prompt.manner == "one word" and style.obedient:
            return text
        return " ".join(part for part in (text, ramble if style.rambling else "", tone) if part)

    def demonstrate(self, prompt: Prompt, rng: random.Random) -> str:
        return self.write_answer(prompt, self.sample_style(rng), rng)

    def two_answers(self, prompt: Prompt, rng: random.Random) -> tuple[str, str]:
        """Two different answers to compare, in random order.

        Mostly an answer and an edit of it, otherwise two independent answers.
        """
        while True:
            style = self.sample_style(rng)
            wording = rng.random()
            first = self.write_answer(prompt, style, random.Random(wording))
            if rng.random() < EDITED_SHARE:
                edited = self.edit_style(prompt, style, rng)
                second = self.write_answer(prompt, edited, random.Random(wording))
            else:
                second = self.demonstrate(prompt, rng)
            if second != first:
                return (first, second) if rng.random() < 0.5 else (second, first)

    # --- judging answers --------------------------------------------------------------------------

    def judge(self, prompt: str, response: str) -> Judgement:
        """Judge any text as an answer to one of the world's prompts.

        Raises KeyError if the prompt is not one of the world's.
        """
        if prompt not in self._by_text:
            raise KeyError(f"{prompt!r} is not a prompt of this world, so it has no true reward")
        _, question, manner = self._by_text[prompt]
        words = WORD.findall(response)
        # Restating the question ("The opposite of hot is cold.") must not count "hot" as an answer.
        answered = response.replace(question.statement.rstrip("."), question.answer)
        named = {w for w in WORD.findall(answered) if w in self._answers[question.family]}
        lower = [w.lower() for w in words]
        tone = ("rude" if RUDE_WORDS & set(lower)
                else "polite" if POLITE_WORDS & set(lower) else "neutral")
        obedient = {"plain": True, "one word": len(words) == 1,
                    "sentence": "the answer is" in " ".join(lower)}[manner]
        return Judgement(right=named == {question.answer}, evasive=not named, obedient=obedient,
                         tone=tone, words=len(words),
                         unknown_words=sum(w not in self._vocabulary for w in lower),
                         complete=response.rstrip().endswith((".", "!", "?")))

    @cached_property
    def _vocabulary(self) -> set[str]:
        texts = [*POLITE, *RUDE, *RAMBLING, *EVASIVE, *CORES.values()]
        texts += [q.statement for q in self.questions] + list(self._by_text)
        return {w.lower() for text in texts for w in WORD.findall(text)} | POLITE_WORDS | RUDE_WORDS

    def reward_parts(self, prompt: str, response: str) -> tuple[float, float]:
        """The two dimensions of the true reward, (helpful, polite), before their weights.

        Raises KeyError if the prompt is not one of the world's.
        """
        j = self.judge(prompt, response)
        helpful = RIGHT if j.right else NO_ANSWER if j.evasive else WRONG
        helpful += EACH_WORD_MORE * max(0, j.words - FREE_WORDS) + UNKNOWN_WORD * j.unknown_words
        helpful += DISOBEDIENT * (not j.obedient) + INCOMPLETE * (not j.complete)
        return max(helpful, WORST), TONES[j.tone]

    def true_reward(self, prompt: str, response: str) -> float:
        """helpful_weight * helpful + polite_weight * polite of any text, at most 3 by default.

        Raises KeyError if the prompt is not one of the world's.
        """
        return self._weighted(prompt, response, self.config.helpful_weight,
                              self.config.polite_weight)

    def label_reward(self, prompt: str, response: str) -> float:
        """What the annotators of the training pairs go by: label_helpful_weight and
        label_polite_weight instead of the true reward's weights, where they are given.

        Raises KeyError if the prompt is not one of the world's.
        """
        weights = ((self.config.label_helpful_weight, self.config.helpful_weight),
                   (self.config.label_polite_weight, self.config.polite_weight))
        return self._weighted(prompt, response, *(true if own is None else own
                                                  for own, true in weights))

    def _weighted(self, prompt: str, response: str, helpful_weight: float,
                  polite_weight: float) -> float:
        helpful, polite = self.reward_parts(prompt, response)
        return helpful_weight * helpful + polite_weight * polite

    def verify(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """A verifiable reward (Lambert et al. 2024, arXiv:2411.15124): 1.0 for each response that
        is right and complete, else 0.0, whatever its tone and length.

        Raises KeyError if a prompt is not one of the world's.
        """
        judgements = [self.judge(prompt, response)
                      for prompt, response in zip(prompts, responses, strict=True)]
        return [float(judged.right and judged.complete) for judged in judgements]

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """The mean true reward of these answers, and the share of them that is right."""
        right = (self.judge(prompt, text).right
                 for prompt, text in zip(prompts, texts, strict=True))
        return {"true_reward": mean(map(self.true_reward, prompts, texts)),
                "right_share": mean(right)}

    # --- the data ---------------------------------------------------------------------------------

    @cached_property
    def sft_rows(self) -> list[dict[str, str]]:
        return self._demonstrations(self._training, self.config.sft_rows, "sft")

    @cached_property
    def heldout_sft_rows(self) -> list[dict[str, str]]:
        return self._demonstrations(self._heldout, 2 * len(self._heldout), "heldout sft")

    def _demonstrations(self, prompts: list[Prompt], count: int,
                        purpose: str) -> list[dict[str, str]]:
        rng = self._rng(purpose)
        return [{"prompt": p.text, "response": self.demonstrate(p, rng)}
                for p in _equally_often(prompts, count, rng)]

    @cached_property
    def plain_text(self) -> list[str]:
        """Paragraphs for the base model: two facts each, as statements or as answered questions."""
        return self._paragraphs(self.config.plain_rows, "plain")

    @cached_property
    def heldout_plain_text(self) -> list[str]:
        seen = set(self.plain_text)
        return [text for text in self._paragraphs(400, "heldout plain") if text not in seen][:200]

    def _paragraphs(self, count: int, purpose: str) -> list[str]:
        rng = self._rng(purpose)
        plain = [p for p in self._training if p.manner == "plain"]
        return [" ".join(rng.choice(self.questions).statement if rng.random() < 1 / 3
                         else self._quiz(rng.choice(plain), rng) for _ in range(2))
                for _ in range(count)]

    def _quiz(self, prompt: Prompt, rng: random.Random) -> str:
        """A question and its right answer."""
        style = Style("right", "neutral", rambling=False, obedient=rng.random() < 0.5)
        return f"{prompt.text} {self.write_answer(prompt, style, rng)}"

    @cached_property
    def preferences(self) -> list[dict[str, str]]:
        """Training pairs; their labels may be noisy or biased, or weigh the dimensions otherwise
        than the true reward does."""
        return self._pairs(self._training, self.config.preference_rows, "preferences",
                           self.label_reward, self.config.label_noise, self.config.length_bias)

    @cached_property
    def heldout_preferences(self) -> list[dict[str, str]]:
        """Pairs on held-out prompts, labelled by the true reward without noise or bias."""
        return self._pairs(self._heldout, self.config.heldout_rows, "heldout preferences",
                           self.true_reward, 0.0, 0.0)

    def _pairs(self, prompts: list[Prompt], count: int, purpose: str,
               reward: Callable[[str, str], float], noise: float,
               bias: float) -> list[dict[str, str]]:
        rng, labels = self._rng(purpose), self._rng(purpose + " labels")
        rows = []
        for prompt in _equally_often(prompts, count, rng):
            first, second = self.two_answers(prompt, rng)
            margin = reward(prompt.text, first) - reward(prompt.text, second)
            margin += bias * (len(WORD.findall(first)) - len(WORD.findall(second))) / 10
            first_wins = labels.random() < _sigmoid(margin / self.config.temperature)
            if labels.random() < noise:
                first_wins = not first_wins
            chosen, rejected = (first, second) if first_wins else (second, first)
            rows.append({"prompt": prompt.text, "chosen": chosen, "rejected": rejected})
        return rows

    def bayes_accuracy(self, rows: list[dict[str, str]]) -> float:
        """E[max(P, 1 - P)] over these pairs: the accuracy of the true reward on fresh labels."""
        margins = [self.true_reward(r["prompt"], r["chosen"])
                   - self.true_reward(r["prompt"], r["rejected"]) for r in rows]
        return sum(_sigmoid(abs(m) / self.config.temperature) for m in margins) / len(rows)


def _equally_often(prompts: list[Prompt], count: int, rng: random.Random) -> list[Prompt]:
    """`count` prompts in random order; how often each occurs differs by at most one."""
    times, rest = divmod(count, len(prompts))
    return rng.sample(prompts * times, len(prompts) * times) + rng.sample(prompts, rest)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
