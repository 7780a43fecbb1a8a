"""The numbers of lesson 12: every loss on the same pairs, and each where it should help."""

from data.world import World, WorldConfig
from dpo import dpo_train, evaluate_preference_accuracy, implicit_rewards
from dpo.loss import LOSSES
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, starting_point
from minigpt.evaluation import sample_responses
from minigpt.recipes import combined

lesson = Lesson("12_the_family", "experiments")
seeds = lesson.pick((0, 1, 2, 3, 4), (0,))
starts = {seed: starting_point(seed, quick=lesson.quick) for seed in seeds}
count = lesson.pick(2000, 32)   # pairs, each read once, 16 in a step (KTO: 32 answers)
losses = lesson.pick([*LOSSES, "kto"], ["dpo", "simpo", "kto"])
samples = lesson.pick(16, 1)    # answers to each held-out prompt
FEW = lesson.pick(300, 8)       # held-out pairs


def train(start, loss, rows, **changes):
    """A policy trained from the SFT model with this loss, by its recipe at the lessons' size."""
    recipe = combined(["lesson", loss], DPOConfig)
    settings = {**recipe, "batch_size": recipe["batch_size"] // 2, "seed": start.seed, **changes}
    return dpo_train(start.fresh_policy(), start.sft, rows, loss=loss, **settings)[0]


def figures_of(start, policy):
    """What a policy does with held-out prompts and pairs."""
    world = start.world
    heldout = world.heldout_preferences[:FEW]
    chosen, rejected = implicit_rewards(policy, start.sft, heldout, beta=1.0)  # log pi / ref
    said = start.measure(policy, samples)
    prompts, answers = sample_responses(policy, world.heldout_prompts, samples, LONGEST_ANSWER,
                                        start.seed)
    judged = [world.judge(*pair) for pair in
              zip(prompts, (answer.text for answer in answers), strict=True)]
    broken = [bool(one.unknown_words) or not one.complete for one in judged]
    reward, kl = said["true_reward"], said["kl_nats_per_response"]
    return {"reward": reward, "kl": kl, "share": start.frontier.share_of_gain(reward, kl),
            "right": said["right_share"], "bytes": said["response_bytes"],
            "accuracy": evaluate_preference_accuracy(policy, start.sft, heldout),
            "chosen": float(chosen.mean()), "rejected": float(rejected.mean()),
            "broken": sum(broken) / len(broken)}


def other_labels(start, **options):
    """The same pairs in a world whose labels are made in another way."""
    config = WorldConfig(**{**vars(start.world.config), **options})
    return World(config, start.seed).preferences[:count]


def over_seeds(loss, rows_of, **changes):
    """The figures of one loss, one dict a seed."""
    return [figures_of(start, train(start, loss, rows_of(start), **changes))
            for start in starts.values()]


def clean(start):
    return start.world.preferences[:count]


# %% The same pairs for every loss
lesson.keep("limit", [{"kl": start.frontier.kls.tolist()[::4],
                       "reward": start.frontier.rewards.tolist()[::4]}
                      for start in starts.values()])
lesson.keep("sft", [figures_of(start, start.sft) for start in starts.values()])
lesson.keep("losses", {loss: over_seeds(loss, clean)
                       for loss in lesson.progress(losses, "losses")})

# %% Labels of which a fifth are flipped
NOISE = 0.2
noisy = {start.seed: other_labels(start, label_noise=NOISE) for start in starts.values()}
lesson.keep("noise", {
    "DPO": over_seeds("dpo", lambda start: noisy[start.seed]),
    "cDPO": over_seeds("cdpo", lambda start: noisy[start.seed], label_smoothing=NOISE),
    "robust DPO": over_seeds("robust_dpo", lambda start: noisy[start.seed], label_smoothing=NOISE),
    "IPO": over_seeds("ipo", lambda start: noisy[start.seed])})

# %% Annotators who like long answers
longer = {start.seed: other_labels(start, length_bias=2.0) for start in starts.values()}
lesson.keep("length", {loss: over_seeds(loss, lambda start: longer[start.seed])
                       for loss in ("dpo", "length_normalised_dpo", "simpo")})

# %% A low beta: where the probability goes
lesson.keep("low_beta", {loss: over_seeds(loss, clean, beta=0.1)
                         for loss in ("dpo", "dpop", "dpo_nll")})


# %% No pairs: of each pair one answer alone, with a thumb up or down
def thumbs(start, every):
    """One answer of each pair: the chosen one of every `every`-th, else the rejected."""
    rows = []
    for number, pair in enumerate(clean(start)):
        good = number % every == 0
        rows.append({"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"],
                     "label": good})
    return rows


lesson.keep("thumbs", {
    "pairs taken apart": over_seeds("kto", clean),
    "one of each pair, half good": over_seeds("kto", lambda start: thumbs(start, 2)),
    "one of each pair, a fifth good": over_seeds("kto", lambda start: thumbs(start, 5))})
lesson.done()
