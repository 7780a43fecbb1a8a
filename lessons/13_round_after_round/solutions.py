# %% [markdown]
# # 13. Round after round: the exercises, worked
# Predict first, then run: `python -m lessons 13 --solutions`. One seed.

# %%
from dpo.rounds import OnlineConfig, dpo_rounds
from dpo.train import DPOConfig
from lessons.course import Lesson
from lessons.start import DPO, LONGEST_ANSWER, SFT, starting_point
from reward.evaluate import score
from sft.rounds import RejectionConfig, sft_rounds
from sft.train import SFTConfig

lesson = Lesson("13_round_after_round", "solutions")
start = starting_point(quick=lesson.quick)
HEAD = ["true reward", "KL (nats)", "bytes"]


def judge(prompts, responses):
    """The reward model of 8,000 pairs that ships with the lessons."""
    return score(start.reward, prompts, responses).tolist()


def truth(prompts, responses):
    """A judge that never errs."""
    return list(map(start.world.true_reward, prompts, responses))


def imitate(judge, rounds, prompts, answers):
    """Rejection sampling, and what it did, as table cells."""
    config = RejectionConfig(rounds=lesson.pick(rounds, 1), samples_per_prompt=answers,
                             round_prompts=lesson.pick(prompts, 8))
    return cells(sft_rounds(start.fresh_policy(), start.world.prompts, judge, config,
                            SFTConfig(**SFT), LONGEST_ANSWER)[0])


def cells(policy):
    said = start.measure(policy)
    return [f"{said['true_reward']:.2f}", f"{said['kl_nats_per_response']:.2f}",
            f"{said['response_bytes']:.0f}"]


# %% [markdown]
# ## 1. Best of how many?
# One round of rejection sampling on 256 prompts, with 2, 4 and 16 answers to each.

# %%
lesson.table("best_of", ["answers", *HEAD],
             [[str(answers), *imitate(judge, 1, 256, answers)]
              for answers in lesson.pick((2, 4, 16), (2,))], title="One round, the best of k")

# %% [markdown]
# ## 2. Is it the judge, or the loop?
# Six rounds of rejection sampling, judged by the true reward.

# %%
lesson.table("by_truth", ["judge", *HEAD], [["the truth", *imitate(truth, 6, 128, 8)]],
             title="A judge that never errs")

# %% [markdown]
# ## 3. Best against worst, or any two?
# Three rounds of DPO; "bradley-terry" draws two of the answers, and the judge picks at random by
# its margin.

# %%
rows = []
for pairs in ("best-worst", "bradley-terry"):
    config = OnlineConfig(rounds=lesson.pick(3, 1), pairs=pairs,
                          round_prompts=lesson.pick(128, 8))
    policy, _, _ = dpo_rounds(start.fresh_policy(), start.sft, start.world.prompts, judge, config,
                              DPOConfig(**{**DPO, "batch_size": 16}), LONGEST_ANSWER)
    rows.append([pairs, *cells(policy)])
lesson.table("which_pairs", ["pairs", *HEAD], rows, title="DPO on two kinds of pairs")
lesson.done()
