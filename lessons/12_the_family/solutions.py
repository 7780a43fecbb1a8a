# %% [markdown]
# # 12. The family: the exercises, worked
# Predict first, then run: `python -m lessons 12 --solutions`. One seed, 1,000 pairs each.

# %%
from data.world import World, WorldConfig
from dpo import dpo_train, evaluate_preference_accuracy
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import starting_point
from minigpt.recipes import combined

lesson = Lesson("12_the_family", "solutions")
start = starting_point(quick=lesson.quick)
count = lesson.pick(1000, 32)
heldout = start.world.heldout_preferences[:lesson.pick(300, 8)]


def attempt(loss, rows, **changes):
    """Reward, KL, length and held-out accuracy after training with this loss, as table cells."""
    settings = {**combined(["lesson", loss], DPOConfig), "batch_size": 16, **changes}
    policy = dpo_train(start.fresh_policy(), start.sft, rows, loss=loss, **settings)[0]
    said = start.measure(policy)
    return [f"{said['true_reward']:.2f}", f"{said['kl_nats_per_response']:.2f}",
            f"{said['response_bytes']:.0f}",
            f"{evaluate_preference_accuracy(policy, start.sft, heldout):.3f}"]


HEAD = ["true reward", "KL (nats)", "bytes", "accuracy, held out"]
pairs = start.world.preferences[:count]

# %% [markdown]
# ## 1. IPO's beta
# Its target is a margin of 1 / (2 beta) nats.

# %%
lesson.table("ipo_betas", ["beta", "target (nats)", *HEAD],
             [[str(beta), f"{1 / (2 * beta):g}", *attempt("ipo", pairs, beta=beta)]
              for beta in lesson.pick((0.05, 0.2, 1.0), (0.2,))], title="IPO at three betas")

# %% [markdown]
# ## 2. SimPO's learning rate
# Nothing but the rate ties SimPO to where it started.

# %%
lesson.table("simpo_rates", ["rate", *HEAD],
             [[f"{lr:.0e}", *attempt("simpo", pairs, lr=lr)]
              for lr in lesson.pick((1e-5, 3e-5, 1e-4), (1e-5,))], title="SimPO at three rates")

# %% [markdown]
# ## 3. How much noise to assume
# A fifth of the labels are flipped; cDPO assumes 0, 0.2 and 0.4.

# %%
config = WorldConfig(**{**vars(start.world.config), "label_noise": 0.2})
noisy = World(config, start.seed).preferences[:count]
lesson.table("smoothing", ["assumed noise", *HEAD],
             [[str(share), *attempt("cdpo", noisy, label_smoothing=share)]
              for share in lesson.pick((0.0, 0.2, 0.4), (0.2,))],
             title="cDPO on labels of which a fifth are flipped")
lesson.done()
