"""What a stage works on, from the little world or from one's own file: the same fields either way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data.preferences import Record, load_preferences, load_sft, split_by_prompt
from data.world import World, WorldConfig

HELDOUT_SHARE = 0.2  # of the prompts of one's own file


@dataclass
class Task:
    """Training and held-out rows and prompts; no prompt stands on both sides.  `world` is None for a file."""

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


def load_task(path: str | None, world_config: WorldConfig, seed: int, demonstrations: bool = False) -> Task:
    """The task of a JSONL file (of demonstrations, or of preferences), or of the world if path is None.

    Raises DataError if the file cannot be used.
    """
    if path is None:
        world = World(world_config, seed)
        return Task(world.sft_rows, world.heldout_sft_rows, world.preferences, world.heldout_preferences,
                    world.plain_text, world.heldout_plain_text, world)
    rows = load_sft(path) if demonstrations else load_preferences(path)
    train, heldout = split_by_prompt(rows, HELDOUT_SHARE, seed)
    print(f"{path}: {len(train)} rows to train on, {len(heldout)} held out, no prompt on both sides")
    if demonstrations:
        return Task(train, heldout, [], [])
    return Task(_chosen(train), _chosen(heldout), train, heldout)


def _chosen(rows: Sequence[Record]) -> list[Record]:
    return [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
