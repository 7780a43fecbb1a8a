"""Named recipes: every setting that --quick or --data changes, in one table.

The defaults beside the options (`DPOConfig`, `WorldConfig`, ...) are the recipe for the whole
little world.  Other data want other settings:

    quick      --quick       eight facts of the world and little data: a look at everything
    few rows   --data FILE   a file of one's own, with hundreds of rows instead of thousands
    lesson                   the lessons' small model (173,888 weights) and eight facts
"""

from typing import Any, NamedTuple

from minigpt import distributed


class Recipe(NamedTuple):
    option: str                         # the option that puts it to use, if there is one
    settings: dict[str, dict[str, Any]]  # the name of a dataclass of settings -> what it changes


RECIPES = {
    "quick": Recipe("quick", {
        "WorldConfig": {"facts": 8, "plain_rows": 1700, "sft_rows": 3500, "preference_rows": 800,
                        "heldout_rows": 300},
        "CommandConfig": {"samples": 4, "max_new_tokens": 64},
        "CompareConfig": {"pool": 128, "samples": 8, "max_new_tokens": 64},
        "PPOConfig": {"num_episodes": 7, "batch_size": 64, "minibatch_size": 32, "lr": 1e-4},
        "DPOConfig": {"lr": 3e-5, "batch_size": 8},
    }),
    "few rows": Recipe("data", {
        "SFTConfig": {"num_epochs": 3},
        "RewardConfig": {"num_epochs": 5, "lr": 1e-3, "batch_size": 16, "pooling": "mean",
                         "reads": "response", "lm_coeff": 0.1},
        "DPOConfig": {"num_epochs": 3, "lr": 1e-3, "batch_size": 8, "beta": 0.1},
    }),
    "lesson": Recipe("", {
        "WorldConfig": {"facts": 8, "plain_rows": 6000, "sft_rows": 8000, "preference_rows": 8000,
                        "heldout_rows": 600},
        "SFTConfig": {"lr": 1.5e-3, "batch_size": 8, "weight_decay": 0.1, "precision": "float32"},
        "RewardConfig": {"num_epochs": 2, "lr": 3e-4, "batch_size": 8, "warmup": 0.1,
                         "weight_decay": 0.1, "precision": "float32"},
        "PPOConfig": {"num_episodes": 60, "lr": 3e-4, "kl_coeff": 0.5, "max_new_tokens": 64},
        "DPOConfig": {"num_epochs": 1, "lr": 1e-4, "beta": 2.0, "batch_size": 32,
                      "precision": "float32"},
    }),
}


def recipe(name: str, config: type) -> dict[str, Any]:
    """What the recipe of this name sets in a dataclass of settings; {} if nothing."""
    return RECIPES[name].settings.get(config.__name__, {})


def settings_of_start(config_class: type, stage: str, run: Any, quick: bool, few_rows: bool) -> Any:
    """The settings of a stage that another run makes its start with, in a folder inside its own.

    run: the settings of that other run, whose seed and options it shares.
    """
    changed = recipe("quick", config_class) if quick else {}
    changed = changed | (recipe("few rows", config_class) if few_rows else {})
    together = config_class(**changed).batch_size  # of all processes, as in one
    changed["batch_size"] = max(1, together // distributed.world_size())
    return config_class(**{**changed, "seed": run.seed, "resume": run.resume,
                           "overwrite": run.overwrite, "shard": run.shard,
                           "out": f"{run.out}/{stage}"})
