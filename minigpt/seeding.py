"""Random numbers that depend on what they are for, and not on what was drawn before."""

import hashlib

import torch

LARGEST_SEED = 2**63 - 1


def seed_of(seed: int, purpose: str, step: int = 0, rank: int = 0) -> int:
    """A seed for one purpose, at one step, in one process: from 0 to 2^63 - 1."""
    digest = hashlib.sha256(f"{seed} {purpose} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(seed: int, purpose: str, step: int = 0, rank: int = 0,
           device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose, at one step, in one process."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, step, rank))
