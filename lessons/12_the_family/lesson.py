# %% [markdown]
# # 12. The family
# The article is README.md beside this file. Run this from the shell (`python -m lessons 12`) or
# cell by cell: five losses on the same pairs, in a minute.

# %%
from dpo import dpo_train, implicit_rewards
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import LONGEST_ANSWER, starting_point
from minigpt.plots import COLOURS
from minigpt.recipes import combined
from minigpt.sampling import generate

lesson = Lesson("12_the_family")
start = starting_point(quick=lesson.quick)
pairs = start.world.preferences[:lesson.pick(1000, 32)]
pair = pairs[0]
print(f"One of {len(pairs)} pairs\n"
      f"  prompt    {pair['prompt']}\n"
      f"  chosen    {pair['chosen']}\n"
      f"  rejected  {pair['rejected']}\n")

# %% [markdown]
# ## The same pairs, another loss
# A loss is a name or a function of your own. Each name brings its recipe: its beta, its rate.

# %%
policies = {}
for loss in lesson.progress(("dpo", "ipo", "dpo_nll", "simpo", "kto"), "losses"):
    settings = {**combined(["lesson", loss], DPOConfig), "batch_size": 16}
    policies[loss], _, _ = dpo_train(start.fresh_policy(), start.sft, pairs, loss=loss, **settings)


def squared(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
    """One of your own: pull every margin to 4 nats. It is IPO with another name for its beta."""
    margin = policy_chosen_logps - ref_chosen_logps - (policy_rejected_logps - ref_rejected_logps)
    return (margin - 4).square().mean() / 100, {}


settings = {**combined(["lesson"], DPOConfig), "batch_size": 16}
settings.pop("beta")  # it asks for none
policies["squared"], _, _ = dpo_train(start.fresh_policy(), start.sft, pairs, loss=squared,
                                      **settings)

# %% [markdown]
# ## How far each got
# The share is of the gain that is possible at this KL. What you see of one seed is noisy: the
# article has five.

# %%
rows, points = [["SFT", "-", "", "0", "", ""]], {}
for loss, policy in policies.items():
    said = start.measure(policy)
    reward, kl = said["true_reward"], said["kl_nats_per_response"]
    heldout = start.world.heldout_preferences[:lesson.pick(300, 8)]
    chosen, rejected = implicit_rewards(policy, start.sft, heldout, beta=1.0)  # log pi / ref
    points[loss] = kl, reward
    rows.append([loss, f"{start.frontier.share_of_gain(reward, kl):.0%}", f"{reward:.2f}",
                 f"{kl:.2f}", f"{float(chosen.mean()):+.2f}", f"{float(rejected.mean()):+.2f}"])
rows[0][2] = f"{start.frontier.start:.2f}"
lesson.table("one_seed", ["loss", "share", "true reward", "KL (nats)", "log-ratio, chosen",
                          "log-ratio, rejected"], rows, title="Five losses, and one of our own")

# %%
figure, axis = lesson.panels(height=4.0)
axis.plot(start.frontier.kls, start.frontier.rewards, color="black", label="limit")
for (loss, (kl, reward)), colour in zip(points.items(), COLOURS, strict=False):
    axis.plot(kl, reward, "o", color=colour, label=loss)
axis.set(xlabel="KL from SFT (nats per response)", ylabel="true reward",
         xlim=(0, 1.2 * max(kl for kl, _ in points.values())))
axis.legend()
lesson.figure("one_seed", figure, f"The same {len(pairs)} pairs, six losses, one seed: no loss "
              "passes the limit, and most lie near one line below it.")

# %% [markdown]
# ## What they say

# %%
prompt = start.world.heldout_prompts[0]
print(prompt)
for name, model in {"SFT": start.sft, **policies}.items():
    answer, = generate(model, [prompt], LONGEST_ANSWER, greedy=True)
    print(f"  {name:<10}{answer.text}")
print()
lesson.done()
