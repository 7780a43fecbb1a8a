"""Named recipes: every setting that --quick, --data or a method changes, in one table.

The defaults beside the options (`DPOConfig`, `WorldConfig`, ...) are the recipe for the whole
little world, except DPO's, which leave the paper's loss alone.  Other data, losses and adapters
want other settings:

    quick      --quick       eight facts of the world and little data: a look at everything
    world      --loss dpo    DPO on the world's own pairs (not --data, not --rounds): averaged
                             weights, and imitation beside the loss
    world value              PPO there (not --data): a value model of fewer layers
    few rows   --data FILE   a file of one's own, with hundreds of rows instead of thousands
    ipo, ...   --loss ipo    what another loss, or --advantage, wants to train well
    lora       --lora-rank   adapters want a higher learning rate than whole weights
    lesson                   the lessons' small model (173,888 weights) and eight facts; pinned in
                             full, so that a change of the defaults changes no article

From few rows a model learns style sooner than whether an answer fits its question.  So the reward
model reads only phrases of a few bytes of the response, and adds up their rewards (pooling): with a
longer context it soon memorises the rows.  Where labels hardly contradict each other its rewards
are far apart, and for PPO a nat costs more.  SFT makes more passes over the rows, and DPO, which
starts from a weak model, makes a few hundred steps at a higher learning rate; imitating the chosen
responses as well (dpo_nll) keeps its text about as good as the SFT model's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from minigpt import distributed

C = TypeVar("C")


class Recipe(NamedTuple):
    option: str                         # the option that puts it to use, if there is one
    settings: dict[str, dict[str, Any]]  # the name of a dataclass of settings -> what it changes
    value: str | None = None            # of the option (None: any)
    unless: tuple[str, ...] = ()        # other options that put it out of use

    def is_used(self, options: Mapping[str, Any]) -> bool:
        """Whether these options ask for it."""
        given = options.get(self.option)
        asked = given == self.value if self.value is not None else bool(given)
        return asked and not any(options.get(name) for name in self.unless)

    @property
    def flag(self) -> str:
        """How the command line asks for it."""
        flag = "--" + self.option.replace("_", "-") + (f" {self.value}" if self.value else "")
        return " without --".join((flag, *self.unless))


class Times(NamedTuple):
    """In a recipe: a multiple of what holds without it, the default or another recipe's value."""

    factor: float

    def of(self, value: float) -> float:
        product = float(f"{self.factor * value:.6g}")
        return int(product) if isinstance(value, int) else product


RECIPES = {
    "quick": Recipe("quick", {
        "WorldConfig": {"facts": 8, "plain_rows": 1700, "sft_rows": 3500, "preference_rows": 800,
                        "heldout_rows": 300},
        "CommandConfig": {"samples": 4, "max_new_tokens": 64},
        "OnlineConfig": {"round_prompts": 64}, "RejectionConfig": {"round_prompts": 64},
        "CompareConfig": {"max_new_tokens": 64, "pool": 64},
        "PPOConfig": {"num_episodes": 7, "batch_size": 64, "minibatch_size": 32, "lr": 1e-4},
        "RewardConfig": {"lr": 2e-4, "batch_size": 8},
        "DPOConfig": {"lr": 3e-5, "batch_size": 8},
    }),
    "few rows": Recipe("data", {
        "SFTConfig": {"num_epochs": 8, "min_steps": 100},
        "RewardConfig": {"num_epochs": 10, "lr": 2e-3, "batch_size": 16, "pooling": "sum",
                         "reads": "phrases"},
        "PPOConfig": {"kl_coeff": 2.0},
        "DPOConfig": {"loss": "dpo_nll", "num_epochs": 3, "lr": 3e-4, "batch_size": 8,
                      "beta": 1.0},
    }),
    "lesson": Recipe("", {
        "WorldConfig": {"facts": 8, "plain_rows": 6000, "sft_rows": 8000, "preference_rows": 8000,
                        "heldout_rows": 600},
        "SFTConfig": {"lr": 1.5e-3, "batch_size": 8, "weight_decay": 0.1, "precision": "float32"},
        "RewardConfig": {"num_epochs": 2, "lr": 3e-4, "batch_size": 8, "warmup": 0.1,
                         "weight_decay": 0.1, "precision": "float32"},
        "PPOConfig": {"num_episodes": 60, "samples_per_prompt": 1, "minibatch_size": 64,
                      "lr": 3e-4, "kl_coeff": 0.5, "kl_penalty": "sampled", "max_new_tokens": 64},
        "DPOConfig": {"num_epochs": 1, "lr": 1e-4, "beta": 2.0, "batch_size": 32,
                      "final_lr": 0.0, "average": 0.0, "precision": "float32"},
    }),
    # A pair says nothing about texts that it does not contain, so each step moves them at random.
    # In a mean of the weights over all steps that shrinks.  And both responses of a pair are
    # imitated: the same people wrote them all, so this holds down what none of them would write.
    "world": Recipe("loss", {"DPOConfig": {"beta": 0.7, "imitation_weight": 1.5, "lr": Times(1.5),
                                           "final_lr": 1.0, "average": 1.0}},
                    "dpo", unless=("data", "rounds")),
    # Two of the four layers say as well what an answer will be worth, in less time.
    "world value": Recipe("advantage", {"PPOConfig": {"value_layers": 2}}, "gae", unless=("data",)),
}
# Of DPOConfig for each loss but DPO's own, and of PPOConfig for each advantage but GAE: the best of
# a few that were tried on seeds that the tables leave out (lessons/notes/family.md).
LOSS_SETTINGS: dict[str, dict[str, Any]] = {
    "ipo": {"beta": 0.2},
    "hinge": {"beta": 1.0},
    "cdpo": {"beta": 1.0, "label_smoothing": 0.05},
    "robust_dpo": {"beta": 4.0, "label_smoothing": 0.02, "lr": Times(0.5)},
    "apo_zero": {"beta": 2.0},
    "apo_down": {"beta": 4.0, "lr": Times(0.1)},
    "dpop": {"beta": 1.0, "lam": 1.0},
    "length_normalised_dpo": {"beta": 30.0},  # of a log-ratio per token
    "dpo_nll": {"beta": 2.0, "nll_weight": 1.0},
    "simpo": {"beta": 10.0, "gamma": 0.5, "lr": Times(0.1)},
    "orpo": {"lam": 1.0},
    "kto": {"beta": 2.0, "batch_size": Times(2)},  # single responses: as many tokens as pairs
}
ADVANTAGE_SETTINGS: dict[str, dict[str, Any]] = {
    "rloo": {"samples_per_prompt": 4},
    "grpo": {"samples_per_prompt": 4, "kl_in": "loss", "kl_coeff": 0.1, "ptx_coeff": 0.0},
}
# Of rollouts: part of these recipes, also with --quick.  Lessons set their own.
SIZES: dict[str, dict[str, Any]] = {
    "rloo": {"batch_size": Times(0.5), "num_episodes": Times(1.5)},
    "grpo": {"minibatch_size": 64},
}
RECIPES |= {name: Recipe("loss", {"DPOConfig": settings}, name)
            for name, settings in LOSS_SETTINGS.items()}
RECIPES |= {name: Recipe("advantage", {"PPOConfig": settings | SIZES[name]}, name)
            for name, settings in ADVANTAGE_SETTINGS.items()}
RECIPES["gae"] = Recipe("advantage", {"PPOConfig": {"samples_per_prompt": 4}}, "gae")
RECIPES["lora"] = Recipe("lora_rank", {"DPOConfig": {"lr": Times(10)},
                                       "PPOConfig": {"lr": Times(10 / 3)}})


def recipe(name: str, config: type) -> dict[str, Any]:
    """What the recipe of this name sets in a dataclass of settings; {} if nothing."""
    return RECIPES[name].settings.get(config.__name__, {})


def combined(names: Sequence[str], config: type) -> dict[str, Any]:
    """What these recipes set together, the later ones winning.  Not every name has a recipe."""
    chosen: dict[str, Any] = {}
    for name in names:
        for key, value in (recipe(name, config) if name in RECIPES else {}).items():
            chosen[key] = value.of(chosen.get(key, getattr(config, key))) \
                if isinstance(value, Times) else value
    return chosen


def with_recipes(config: type[C], names: Sequence[str], **settings: Any) -> C:
    """These settings; those that are None are the recipes', or else the defaults."""
    given = {key: value for key, value in settings.items() if value is not None}
    return config(**combined(names, config) | given)


def print_recipe(name: str, settings: dict[str, Any], of_stage: str = "") -> None:
    """Print what a recipe sets, in one line, if it sets anything."""
    if settings:
        print(f"recipe {name!r} ({RECIPES[name].flag}){of_stage}: "
              + ", ".join(f"{key}={value}" for key, value in settings.items()))


def settings_of_start(config_class: type, stage: str, run: Any, quick: bool, few_rows: bool) -> Any:
    """Settings of the SFT (or reward) run that a later stage makes when it was given no checkpoint.

    run: the settings of the later stage; the run goes into a folder inside its own.
    """
    changed: dict[str, Any] = {}
    for name, in_use in (("quick", quick), ("few rows", few_rows)):
        if in_use:
            print_recipe(name, recipe(name, config_class), f" for {stage}")
            changed |= recipe(name, config_class)
    total = config_class(**changed).batch_size  # the recipe's, to be divided by the processes
    changed["batch_size"] = max(1, total // distributed.world_size())
    return config_class(**{**changed, "seed": run.seed, "resume": run.resume,
                           "overwrite": run.overwrite, "shard": run.shard,
                           "out": below(run.out, stage)})


def below(out: str | None, name: str) -> str | None:
    """A folder inside the run's own, if it has one."""
    return None if out is None else f"{out}/{name}"
