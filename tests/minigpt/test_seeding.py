import itertools
import re
from pathlib import Path

import torch

from minigpt.seeding import seed_of, seeded

ROOT = Path(__file__).resolve().parents[2]


def test_seed_purpose_step_and_rank_all_matter():
    of = list(itertools.product((0, 1, 2, 7, 10), ("sampling", "minibatches", "data order"),
                                range(40), range(4)))
    seeds = [seed_of(*arguments) for arguments in of]
    assert len(set(seeds)) == len(of)
    assert seeds == [seed_of(*arguments) for arguments in of]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62 and min(seeds) < 2**58  # the whole range is used
    assert seed_of(1, "a") == seed_of(1, "a", 0, 0)
    assert seed_of(1, "a", 11, 1) != seed_of(1, "a", 1, 11) != seed_of(11, "a", 1, 1)


def test_a_generator_draws_what_its_purpose_step_and_rank_say():
    def draw(*arguments):
        return torch.rand(5, generator=seeded(*arguments)).tolist()
    assert draw(3, "sampling", 2, 1) == draw(3, "sampling", 2, 1)
    others = [(4, "sampling", 2, 1), (3, "minibatches", 2, 1), (3, "sampling", 3, 1),
              (3, "sampling", 2, 0)]
    assert all(draw(*other) != draw(3, "sampling", 2, 1) for other in others)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(3, "sampling")
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are used


def test_nothing_else_makes_a_seed():
    """What is left uses the seed as the caller gave it: fresh weights, and `generate`'s."""
    found = {f"{path.parent.name}/{path.name}": match.group(1)
             for package in ("minigpt", "sft", "reward", "dpo", "ppo")
             for path in (ROOT / package).glob("*.py")
             for match in re.finditer(r"manual_seed\((.*)\)", path.read_text())}
    assert found == {"minigpt/seeding.py": "seed_of(seed, purpose, step, rank)",
                     "minigpt/sampling.py": "seed", "sft/start.py": "config.seed",
                     "reward/start.py": "config.seed"}
