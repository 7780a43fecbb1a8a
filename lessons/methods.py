"""Every method of the library as a command, for `lessons.compare`, and when to take it."""

from collections.abc import Sequence
from typing import NamedTuple

from minigpt.errors import UserError


class Method(NamedTuple):
    """How a method is trained: `python -m <stage>.main --init SFT <flags>`.

    reward: the option that takes the reward model, for a method that needs it.
    """

    title: str
    when: str
    stage: str = ""
    flags: tuple[str, ...] = ()
    reward: str = ""


def _loss(title: str, name: str, when: str) -> Method:
    return Method(title, when, "dpo", ("--loss", name))


METHODS = {
    "best-of-n": Method("best of n", "a reward model, no training, and time for n answers to each "
                                     "question", reward="--reward"),
    "ppo": Method("PPO", "a reward model, memory for four models, and credit for each token",
                  "ppo", reward="--reward"),
    "dpo": Method("DPO", "pairs and nothing else: the first thing to try", "dpo"),
    "rloo": Method("RLOO", "as PPO, without the value model: less memory, less to tune", "ppo",
                   ("--advantage", "rloo"), "--reward"),
    "rloo-long": Method("RLOO, 256 episodes", "the furthest, at five times RLOO's time", "ppo",
                        ("--advantage", "rloo", "--num-episodes", "256", "--batch-size", "128",
                         "--minibatch-size", "64", "--ptx-coeff", "0.0"), "--reward"),
    "grpo": Method("GRPO", "as RLOO, where rewards are right or wrong and questions differ in "
                           "difficulty", "ppo", ("--advantage", "grpo"), "--reward"),
    "ipo": _loss("IPO", "ipo", "labels that are almost always right, where DPO's margins "
                         "would grow without end"),
    "hinge": _loss("hinge", "hinge", "margins that should stop growing once they are large enough"),
    "cdpo": _loss("cDPO", "cdpo", "labels of which a known share is wrong"),
    "robust-dpo": _loss("robust DPO", "robust_dpo", "labels that are flipped at a known, constant "
                                                    "rate"),
    "apo-zero": _loss("APO-zero", "apo_zero", "chosen answers better than the model's own"),
    "apo-down": _loss("APO-down", "apo_down", "chosen answers worse than the model's own"),
    "dpop": _loss("DPOP", "dpop", "pairs that differ in only a few tokens"),
    "dpo-normalised": _loss("DPO per token", "length_normalised_dpo",
                            "chosen answers that are longer by habit, not by merit"),
    "dpo-nll": _loss("DPO + NLL", "dpo_nll", "chosen answers that are worth imitating"),
    "simpo": _loss("SimPO", "simpo", "no memory for a reference"),
    "orpo": _loss("ORPO", "orpo", "no memory for a reference, and no SFT yet"),
    "kto": _loss("KTO", "kto", "single answers with thumbs up or down, no pairs"),
    "dpo-lora": Method("DPO, LoRA", "a model too large to train whole or to hold twice", "dpo",
                       ("--lora-rank", "4")),
    "online-dpo": Method("online DPO", "a judge that can be asked again", "dpo", ("--rounds", "3"),
                         "--judge"),
    "rejection": Method("rejection sampling", "a judge, and no training loop but SFT's", "sft",
                        ("--rounds", "3"), "--judge"),
}
DEFAULT = ("best-of-n", "ppo", "dpo")


def chosen_methods(names: Sequence[str] | None) -> dict[str, Method]:
    """The methods of these names, in the table's order; "all" means all of them.

    Raises UserError on a name that is none, with the list.
    """
    names = list(names or DEFAULT)
    for name in names:
        if name not in METHODS and name != "all":
            raise UserError(f"--methods {name}: there is no such method; there are all, "
                            f"{', '.join(METHODS)}")
    return {name: method for name, method in METHODS.items() if name in names or "all" in names}
