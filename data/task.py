"""What a stage works on, from the little world or from one's own file: the same fields either way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.files import DataError
from data.preferences import WHAT_GIVES_WAY, Record, demonstration, heldout_prompts, make_fit, preference, read_records
from data.world import World, WorldConfig
from minigpt.checkpoint import load_checkpoint
from minigpt.cli import UserError, option

HELDOUT_SHARE = 0.2  # of the prompts of one's own file


@dataclass
class RowsConfig:
    """Where the rows come from, and how long they may be."""

    data: str | None = option(None, "your own rows, .jsonl, .json or .csv (without it: the little world of data/world.py)")
    max_seq_len: int | None = option(None, "longest row, prompt and one response, in bytes and two marks (without it: that "
                                           "of --init, else 128 in the world and 256 for a file)")
    long_rows: str = option("prompt", "what gives way in a longer row of --data: the prompt's beginning, the response's end "
                                      "(and with it its EOS), or the row", choices=WHAT_GIVES_WAY)


@dataclass
class Task:
    """Training and held-out rows and prompts; no prompt stands on both sides.

    `world` is None for a file.
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
        """What PPO practises on: the prompts of the preferences."""
        return sorted({row["prompt"] for row in self.preferences})

    @property
    def seen_preferences(self) -> list[Record]:
        """As many of the training pairs as are held out: enough to see how much better a model knows what it saw."""
        return self.preferences[:len(self.heldout_preferences)]

    @property
    def heldout_prompts(self) -> list[str]:
        return sorted({row["prompt"] for row in self.heldout_preferences or self.heldout_sft_rows})

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """The true reward and the share of right answers; nothing where no world knows them."""
        return self.world.measure(prompts, texts) if self.world else {}


def load_task(config: RowsConfig, world_config: WorldConfig, seed: int, init: str | None = None,
              demonstrations: bool = False) -> Task:
    """The task of a file (of demonstrations, or of preferences), or of the world if there is none.

    init: the checkpoint that will be trained on it, whose own max_seq_len no row may pass.
    Raises DataError if the file cannot be used, UserError if max_seq_len is more than the checkpoint's.
    """
    path, max_seq_len = config.data, row_length(config, init)
    if path is not None and world_config not in (WorldConfig(), WorldConfig(**WorldConfig.QUICK)):
        raise UserError(f"--data {path} takes the place of the little world: leave out the options that describe the world")
    if path is None:
        world = World(world_config, seed)
        return Task(max_seq_len, world.sft_rows, world.heldout_sft_rows, world.preferences, world.heldout_preferences,
                    world.plain_text, world.heldout_plain_text, world)
    records = read_records(path, demonstration if demonstrations else preference)
    held = heldout_prompts((record["prompt"] for _, record in records), HELDOUT_SHARE, seed)
    train, heldout = [], []
    for (_, record), fitted in zip(records, make_fit(records, max_seq_len, config.long_rows), strict=True):
        if fitted is not None:
            (heldout if record["prompt"] in held else train).append(fitted)
    cut = {record["prompt"] for record in heldout}  # two prompts may have become one
    train = [record for record in train if record["prompt"] not in cut]
    print(f"{path}: {len(train)} rows to train on, {len(heldout)} held out, no prompt on both sides")
    if not train or not heldout:
        raise DataError(f"{path}: too few rows that fit for a part to train on and one to hold out")
    if demonstrations:
        return Task(max_seq_len, train, heldout, [], [])
    return Task(max_seq_len, _chosen(train), _chosen(heldout), train, heldout)


def row_length(config: RowsConfig, init: str | None) -> int:
    """The longest row: as asked for, else as long as the model to start from can read, else by where the rows are from."""
    if init is None:
        return config.max_seq_len or (128 if config.data is None else 256)
    longest = load_checkpoint(init).max_seq_len
    if (config.max_seq_len or 0) > longest:
        raise UserError(f"--max-seq-len {config.max_seq_len} is more than the {longest} that --init {init} was made for")
    return config.max_seq_len or longest


def _chosen(rows: Sequence[Record]) -> list[Record]:
    return [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
