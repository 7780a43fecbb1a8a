"""What a stage trains and is measured on: the same fields for the little world and for a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.files import DataError
from data.preferences import (
    TRUNCATION_CHOICES,
    Record,
    demonstration,
    heldout_prompts,
    preference,
    read_records,
    truncate_records,
)
from data.world import World, WorldConfig
from minigpt.checkpoint import load_checkpoint
from minigpt.errors import UserError
from minigpt.options import option
from minigpt.recipes import recipe

HELDOUT_SHARE = 0.2  # of the prompts in a file


@dataclass
class RowsConfig:
    """Where the rows come from, and how long they may be."""

    data: str | None = option(None, "your own rows, a .jsonl, .json or .csv file (without it: the "
                                    "little world of data/world.py)")
    max_seq_len: int | None = option(None, "longest row (prompt and one response), in tokens: one "
                                           "per byte and two special tokens (without it: that of "
                                           "--init, else 128 for the world and 256 for a file)")
    long_rows: str = option("prompt", "what to do with a longer row of --data: truncate its prompt "
                                      "on the left, truncate its response (which then has no EOS), "
                                      "or drop the row", choices=TRUNCATION_CHOICES)


@dataclass
class Task:
    """Training and held-out rows; no prompt is in both.

    `world` is None if the rows come from a file.
    """

    max_seq_len: int
    sft_rows: list[Record]
    heldout_sft_rows: list[Record]
    preferences: list[Record]
    heldout_preferences: list[Record]
    plain_text: list[str] = field(default_factory=list)
    heldout_plain_text: list[str] = field(default_factory=list)
    world: World | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts that PPO trains on: those of the training preferences."""
        return sorted({row["prompt"] for row in self.preferences})

    @property
    def seen_preferences(self) -> list[Record]:
        """As many training pairs as are held out, to compare a model's accuracy on both."""
        return self.preferences[:len(self.heldout_preferences)]

    @property
    def heldout_prompts(self) -> list[str]:
        return sorted({row["prompt"] for row in self.heldout_preferences or self.heldout_sft_rows})

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """The mean true reward and the share of right answers; {} without a world."""
        return self.world.measure(prompts, texts) if self.world else {}


def load_task(config: RowsConfig, world_config: WorldConfig, seed: int, init: str | None = None,
              demonstrations: bool = False) -> Task:
    """The task of a file (of demonstrations or of preferences), or of the world if there is none.

    init: the checkpoint to start from, whose max_seq_len no row may exceed.
    Raises DataError if the file cannot be used, UserError if max_seq_len exceeds the checkpoint's
    or if a file comes with options of the world.
    """
    path, max_seq_len = config.data, row_length(config, init)
    if path is None:
        world = World(world_config, seed)
        return Task(max_seq_len, world.sft_rows, world.heldout_sft_rows, world.preferences,
                    world.heldout_preferences, world.plain_text, world.heldout_plain_text, world)
    if world_config not in (WorldConfig(), WorldConfig(**recipe("quick", WorldConfig))):
        raise UserError(f"--data {path} replaces the little world: leave out the options of the "
                        "world")
    records = read_records(path, demonstration if demonstrations else preference)
    held = heldout_prompts((record["prompt"] for _, record in records), HELDOUT_SHARE, seed)
    fitted = truncate_records(records, max_seq_len, config.long_rows)
    train: list[Record] = []
    heldout: list[Record] = []
    for (_, record), row in zip(records, fitted, strict=True):
        if row is not None:
            (heldout if record["prompt"] in held else train).append(row)
    held = {row["prompt"] for row in heldout}  # truncation may have made two prompts equal
    train = [row for row in train if row["prompt"] not in held]
    print(f"{path}: {len(train)} rows to train on, {len(heldout)} held out, no prompt on both "
          "sides")
    if not train or not heldout:
        raise DataError(f"{path}: too few rows fit to train on some and hold out others")
    if demonstrations:
        return Task(max_seq_len, train, heldout, [], [])
    return Task(max_seq_len, _chosen(train), _chosen(heldout), train, heldout)


def row_length(config: RowsConfig, init: str | None) -> int:
    """The longest row in tokens: config.max_seq_len, else the checkpoint's, else by data source.

    Raises UserError if config.max_seq_len exceeds the checkpoint's.
    """
    if init is None:
        return config.max_seq_len or (128 if config.data is None else 256)
    longest = load_checkpoint(init).max_seq_len
    if (config.max_seq_len or 0) > longest:
        raise UserError(f"--max-seq-len {config.max_seq_len} exceeds the {longest} of --init "
                        f"{init}")
    return config.max_seq_len or longest


def _chosen(rows: Sequence[Record]) -> list[Record]:
    return [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
