"""What a stage trains and is measured on: the same fields for the little world and for a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.files import DataError, files_of, read_rows
from data.layouts import (
    Record,
    is_preference,
    read_demonstrations,
    read_preference,
    read_prompt,
    read_unpaired,
)
from data.preferences import Reader, check_labels, read_records
from data.splits import (
    TRUNCATION_CHOICES,
    heldout_prompts,
    loose,
    split_records,
    truncate_record,
    truncate_records,
    without_prompts_of,
)
from data.world import World, WorldConfig
from minigpt.checkpoint import load_checkpoint
from minigpt.errors import UserError
from minigpt.options import Settings, option
from minigpt.recipes import recipe

HELDOUT_SHARE = 0.2  # of the prompts in a file

Sides = tuple[list[Record], list[Record]]  # to train on, held out


@dataclass
class RowsConfig(Settings):
    """Where the rows come from, and how long they may be."""

    data: list[str] | None = option(None, "your own rows: files (.jsonl, .json, .csv, .parquet) or "
                                          "a folder of them (without it: the little world)")
    eval_data: list[str] | None = option(None, "held-out rows of your own, as --data (without it: "
                                               "a fifth of the prompts of --data)")
    strict: bool = option(False, "refuse a file with any row that cannot be used, instead of "
                                 "leaving the row out")
    max_seq_len: int | None = option(None, "longest row (prompt and one response), in tokens: one "
                                           "per byte and two special tokens (without it: that of "
                                           "--init, else 128 for the world and 256 for a file)",
                                     at_least=4)
    long_rows: str = option("prompt", "what to do with a longer row of --data: truncate its prompt "
                                      "on the left, truncate its response (which then has no EOS), "
                                      "or drop the row", choices=TRUNCATION_CHOICES)

    @property
    def source(self) -> str:
        """Where the rows come from, in words."""
        return "the little world" if self.data is None else " ".join(self.data)


@dataclass
class Task:
    """Training and held-out rows; no prompt is in both.

    `world` is None if the rows come from a file.
    """

    max_seq_len: int
    sft_rows: list[Record] = field(default_factory=list)
    heldout_sft_rows: list[Record] = field(default_factory=list)
    preferences: list[Record] = field(default_factory=list)
    heldout_preferences: list[Record] = field(default_factory=list)
    prompt_rows: list[Record] = field(default_factory=list)  # of a file that has only prompts
    heldout_prompt_rows: list[Record] = field(default_factory=list)
    unpaired: list[Record] = field(default_factory=list)
    heldout_unpaired: list[Record] = field(default_factory=list)
    plain_text: list[str] = field(default_factory=list)
    heldout_plain_text: list[str] = field(default_factory=list)
    world: World | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts of the training rows, which PPO and rounds of sampling answer."""
        rows = self.preferences or self.prompt_rows or self.unpaired or self.sft_rows
        return sorted({row["prompt"] for row in rows})

    @property
    def seen_preferences(self) -> list[Record]:
        """As many training pairs as are held out, to compare a model's accuracy on both."""
        return self.preferences[:len(self.heldout_preferences)]

    @property
    def heldout_prompts(self) -> list[str]:
        rows = self.heldout_preferences or self.heldout_prompt_rows or self.heldout_unpaired
        rows = rows or self.heldout_sft_rows
        return sorted({row["prompt"] for row in rows})

    def measure(self, prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
        """The mean true reward and the share of right answers; {} without a world."""
        return self.world.measure(prompts, texts) if self.world else {}


def load_task(config: RowsConfig, world_config: WorldConfig, seed: int, init: str | None = None,
              kind: str = "preferences") -> Task:
    """The task of the little world, or of files.

    kind: what the files hold, "preferences", "demonstrations", "prompts" (preferences, or rows
    without responses), or "unpaired" (preferences, or rows of one response with a label).
    init: the checkpoint to start from, whose max_seq_len no row may exceed.
    Raises DataError if a file cannot be used or labels all its training rows the same, UserError if
    max_seq_len exceeds the checkpoint's or if files come with options of the world.
    """
    max_seq_len = row_length(config, init)
    if config.data is None:
        if config.eval_data is not None:
            raise UserError("--eval-data needs --data: the little world has held-out rows of its "
                            "own")
        world = World(world_config, seed)
        return Task(max_seq_len, world.sft_rows, world.heldout_sft_rows, world.preferences,
                    world.heldout_preferences, plain_text=world.plain_text,
                    heldout_plain_text=world.heldout_plain_text, world=world)
    if world_config not in (WorldConfig(), WorldConfig(**recipe("quick", WorldConfig))):
        raise UserError(f"--data {' '.join(config.data)} replaces the little world: leave out the "
                        "options of the world")
    if kind in ("prompts", "unpaired") and _has_responses(config.data):
        kind = "preferences"
    (train, heldout), demonstrations = _train_and_heldout(config, READERS[kind], max_seq_len, seed)
    if kind == "demonstrations":
        return Task(max_seq_len, train, heldout)
    if kind == "prompts":
        return Task(max_seq_len, prompt_rows=train, heldout_prompt_rows=heldout)
    if kind == "unpaired":
        check_labels([row["label"] for row in train])
        return Task(max_seq_len, _good(train), _good(heldout), unpaired=train,
                    heldout_unpaired=heldout)
    return Task(max_seq_len, *demonstrations, train, heldout)


READERS: dict[str, Reader] = {"preferences": read_preference, "prompts": read_prompt,
                              "demonstrations": read_demonstrations, "unpaired": read_unpaired}


def _train_and_heldout(config: RowsConfig, read: Reader, max_seq_len: int,
                       seed: int) -> tuple[Sides, Sides]:
    """The records, and the demonstrations of those that are preferences."""
    files = config.data or []
    records = read_records(files, read, config.strict)
    if config.eval_data is None:
        held = heldout_prompts((located.group for located in records), HELDOUT_SHARE, seed)
        rows = truncate_records(records, max_seq_len, config.long_rows)
        train, heldout = split_records(rows, held)
    else:
        evaluated = read_records(config.eval_data, read, config.strict)
        held = {loose(located.group) for located in evaluated}
        evaluated = truncate_records(evaluated, max_seq_len, config.long_rows)
        fitted = truncate_records(records, max_seq_len, config.long_rows)
        rows = [located for located in fitted if loose(located.group) not in held] + evaluated
        train, heldout = split_records(rows, held)
        if len(train) < len(fitted):
            print(f"left out {len(fitted) - len(train)} training rows whose prompts are in "
                  "--eval-data")
    print(f"{' '.join(files)}: {len(train)} rows to train on, {len(heldout)} held out, no prompt "
          "on both sides")
    if not train or not heldout:
        raise DataError(f"{' '.join(files)}: too few rows fit to train on some and hold out others")
    shown, heldout_shown = split_records(
        [located._replace(record=fits) for located in rows for record in located.demonstrations
         if (fits := truncate_record(record, max_seq_len, config.long_rows))], held)
    return (train, heldout), (without_prompts_of(shown, heldout), heldout_shown)


def _has_responses(paths: Sequence[str]) -> bool:
    """Whether any row of these files is a preference."""
    return any(is_preference(row) for file in files_of(paths) for _, row in read_rows(file))


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


def _good(rows: Sequence[Record]) -> list[Record]:
    return [{"prompt": row["prompt"], "response": row["completion"]} for row in rows
            if row["label"]]
