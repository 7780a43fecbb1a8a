"""Rows for the benchmarks: as long as real instruction data, the same each time."""

import random
from pathlib import Path

from data.preferences import Record, load_preferences

WORDS = ("river", "stone", "bridge", "two", "friends", "spoke", "about", "maps", "letters", "weather", "and", "bread", "how",
         "far", "the", "next", "town", "might", "be", "before", "night", "came", "down", "over", "every", "field")


def benchmark_rows(path: str | Path | None, count: int) -> list[Record]:
    """The first `count` rows of a file, or made-up ones: prompts of 54 bytes and responses of 71 on average."""
    if path is not None:
        return load_preferences(path)[:count]
    rng = random.Random(0)

    def text(mean: int, most: int) -> str:
        length = min(most, max(8, round(rng.lognormvariate(0, 0.5) * mean * 0.88)))
        return " ".join(rng.choices(WORDS, k=length))[:length].strip()
    return [{"prompt": text(54, 120), "chosen": text(71, 120) + " a", "rejected": text(71, 120) + " b"}
            for _ in range(count)]
