"""Write the little world's data as JSON Lines files:  python -m data.main --out runs/data"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files import save_jsonl
from data.world import World, WorldConfig
from minigpt.command import run_command
from minigpt.options import Settings, option, parse


@dataclass
class DataConfig(Settings):
    out: str = option("runs/data", "folder for the files")
    seed: int = option(0, "random seed of the world and its data", at_least=0)
    quick: bool = option(False, "write fewer rows")


def main(argv: Sequence[str] | None = None) -> None:
    config, world_config = parse(__doc__, argv, DataConfig, WorldConfig)
    world = World(world_config, config.seed)
    splits = {"sft": world.sft_rows, "sft_heldout": world.heldout_sft_rows,
              "preferences": world.preferences, "preferences_heldout": world.heldout_preferences}
    for name, rows in splits.items():
        path = Path(config.out) / f"{name}.jsonl"
        save_jsonl(rows, path)
        print(f"{len(rows):>7} rows  {path}")
    print("Bayes accuracy of the held-out preferences: "
          f"{world.bayes_accuracy(world.heldout_preferences):.4f}")


if __name__ == "__main__":
    run_command(main)
