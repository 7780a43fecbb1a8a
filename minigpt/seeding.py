"""Random numbers that depend on what they are for, and on nothing that happened before."""

import torch


def seed_of(seed: int, purpose: str, step: int = 0, rank: int = 0) -> int:
    """A seed for one purpose, at one step, in one process."""
    return seed * 1_000_003 + step + 10**9 * rank


def seeded(seed: int, purpose: str, step: int = 0, rank: int = 0,
           device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose, at one step, in one process."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, step, rank))
