"""The runs that the article's numbers come from:  python -m lessons 06 --experiments

Five seeds, each with a world, an SFT model and a reward model of its own.  Everything is measured
on held-out prompts.  figures.py draws what this keeps.
"""

import time
from statistics import mean

import torch

from data.world import MANNERS
from dpo import dpo_train, evaluate_preference_accuracy
from lessons.course import Lesson
from lessons.limit import BETAS, Frontier, best_of_n_kl
from lessons.start import DPO, LONGEST_ANSWER, PPO, REWARD, starting_point
from minigpt import generate
from minigpt.evaluation import kl_to_reference, sample_responses
from ppo import ppo_training
from reward import evaluate_reward_accuracy, score
from reward.start import train_centered
from reward.train import RewardConfig

lesson = Lesson("06_dpo_or_rlhf", "experiments")
SEEDS = range(lesson.pick(5, 2))
POOL, N = lesson.pick((512, 16), (8, 2))  # SFT answers to each held-out prompt; n of best-of-n
SAMPLES = lesson.pick(32, 1)              # answers to each held-out prompt by every policy
TOKENS = lesson.pick(LONGEST_ANSWER, 4)
ALL, SMALL = lesson.pick((8000, 2000), (16, 8))  # pairs
EPISODES, FEW_EPISODES = lesson.pick((60, 30), (1, 1))
FEWEST = lesson.pick(250, 4)                     # different pairs, read as often as SMALL ones
RATES = (1, 3, 10)                               # times the learning rate of the recipe


# --- two ways to train ----------------------------------------------------------------------------

def run_dpo(start, pairs, **changes):
    return dpo_train(start.fresh_policy(), start.sft, pairs, seed=start.seed, **DPO | changes)[0]


def run_ppo(start, reward, **changes):
    prompts = start.world.prompts[:lesson.pick(None, 4)]
    settings = PPO | {"num_episodes": FEW_EPISODES, "max_new_tokens": TOKENS} | changes
    return ppo_training(start.fresh_policy(), start.sft, reward, prompts, seed=start.seed,
                        **settings)[0]


def reward_model(start, pairs, passes=REWARD["num_epochs"]):
    """A reward model with its zero at the SFT model's answers."""
    config = RewardConfig(seed=start.seed, **REWARD | {"num_epochs": passes})
    (model,), _, _ = train_centered(start.sft, pairs, start.world.prompts, config, TOKENS,
                                    samples=4)
    return model


# --- one way to measure ---------------------------------------------------------------------------

def rewards_of(start, prompts, texts):
    """The true reward of each text: (prompts, samples)."""
    rewards = torch.tensor([start.world.true_reward(p, t)
                            for p, t in zip(prompts, texts, strict=True)])
    return rewards.view(len(set(prompts)), -1)


def win_rate(ours, theirs):
    """How often a reward of ours is higher: every answer against every one of theirs to the same
    prompt; a tie counts one half."""
    ours, theirs = ours[:, :, None], theirs[:, None, :]
    return float(((ours > theirs) + 0.5 * (ours == theirs)).float().mean())


def measured(start, policy, prompts=None, samples=SAMPLES):
    """What a policy says to held-out prompts, and how far it went from the SFT model."""
    prompts, answers = sample_responses(policy, prompts or start.world.heldout_prompts, samples,
                                        TOKENS, start.seed + 10)
    texts = [answer.text for answer in answers]
    kl = kl_to_reference(policy, start.sft, prompts, answers)["kl_nats_per_response"]
    obeyed = mean(start.world.judge(p, t).obedient for p, t in zip(prompts, texts, strict=True))
    return {**start.world.measure(prompts, texts), "kl": kl, "obedient": obeyed,
            "rewards": rewards_of(start, prompts, texts)}


class Pool:
    """Many answers of the SFT model to each held-out prompt.

    Their true rewards draw the limit, and best-of-n picks from them.
    """

    def __init__(self, start):
        prompts = start.world.heldout_prompts
        self.prompts, answers = sample_responses(start.sft, prompts, POOL, TOKENS, start.seed)
        self.texts = [answer.text for answer in answers]
        self.scores = score(start.reward, self.prompts,
                            [answer.ids for answer in answers]).view(-1, POOL)
        self.rewards = rewards_of(start, self.prompts, self.texts)
        self.frontier = Frontier(self.rewards)

    def compared(self, figures):
        """Figures of `measured`, with the share of the possible gain and the win rate."""
        rewards = figures.pop("rewards")
        share = self.frontier.share_of_gain(figures["true_reward"], figures["kl"])
        return {**figures, "share": share, "win_rate": win_rate(rewards, self.rewards)}

    def best_of_n(self, start):
        """The answer with the highest score in each group of n."""
        groups = self.scores.view(len(self.scores), -1, N)
        places = groups.argmax(-1) + N * torch.arange(groups.shape[1])  # (prompts, groups)
        picked = (places + POOL * torch.arange(len(places))[:, None]).flatten().tolist()
        figures = start.world.measure([self.prompts[i] for i in picked],
                                      [self.texts[i] for i in picked])
        kl = mean(best_of_n_kl(scores, N) for scores in self.scores)
        return self.compared({**figures, "kl": kl, "rewards": self.rewards.gather(1, places)})


def timed(train, *args, **options):
    """What `train` returns, and the seconds it took of one core."""
    began = time.process_time()
    result = train(*args, **options)
    return result, time.process_time() - began


# --- the experiments ------------------------------------------------------------------------------

def side_by_side(start, pool):
    """The same 8,000 pairs, three methods: figures, and seconds of training."""
    dpo, dpo_seconds = timed(run_dpo, start, start.world.preferences[:ALL])
    ppo, ppo_seconds = timed(run_ppo, start, start.reward, num_episodes=EPISODES)
    figures = {"SFT": pool.compared(measured(start, start.sft)), "best of n": pool.best_of_n(start),
               "PPO": pool.compared(measured(start, ppo)),
               "DPO": pool.compared(measured(start, dpo))}
    del figures["SFT"]["share"]  # it gained nothing, of nothing possible at a KL of 0
    pairs = start.world.heldout_preferences[:lesson.pick(None, 8)]
    figures["best of n"]["accuracy"] = evaluate_reward_accuracy(start.reward, pairs)
    for name, policy in (("PPO", ppo), ("DPO", dpo)):
        figures[name]["accuracy"] = evaluate_preference_accuracy(policy, start.sft, pairs)
    return figures, {"DPO": dpo_seconds, "PPO": ppo_seconds}


def limit(pool):
    """The limit as a curve, and the point on it at which each method's beta aims."""
    kls, rewards = pool.frontier.kls, pool.frontier.rewards
    aims = {}
    for name, beta in (("DPO", DPO["beta"]), ("PPO", PPO["kl_coeff"])):
        at = int((BETAS - start.world.config.temperature * beta).abs().argmin())
        aims[name] = {"kl": float(kls[at]), "true_reward": float(rewards[at])}
    return {"kls": kls[::5].tolist(), "rewards": rewards[::5].tolist(), "aims": aims}


def at_rates(start, reward):
    """Each method at 1 to 10 times its own learning rate: the policies, by method and factor."""
    pairs = start.world.preferences[:SMALL]
    return {"DPO": {factor: run_dpo(start, pairs, lr=factor * DPO["lr"]) for factor in RATES},
            "PPO": {factor: run_ppo(start, reward, lr=factor * PPO["lr"]) for factor in RATES}}


def with_few_pairs(start, pool, many):
    """As many updates as `many` (by method) had, on an eighth of the pairs."""
    pairs, times = start.world.preferences[:FEWEST], SMALL // FEWEST
    reward = reward_model(start, pairs, times * REWARD["num_epochs"])
    few = {"DPO": run_dpo(start, pairs, num_epochs=times), "PPO": run_ppo(start, reward),
           "reward": reward}
    heldout = start.world.heldout_preferences[:lesson.pick(None, 8)]
    found = {}
    for count, models in ((FEWEST, few), (SMALL, many)):
        found[count] = {name: pool.compared(measured(start, models[name]))
                        for name in ("DPO", "PPO")}
        found[count]["DPO"]["accuracy"] = evaluate_preference_accuracy(models["DPO"], start.sft,
                                                                       heldout)
        found[count]["PPO"]["accuracy"] = evaluate_reward_accuracy(models["reward"], heldout)
    return found


def asks_for_sentence(prompt):
    return prompt.startswith(MANNERS["sentence"])


def on_another_kind(start, labelled):
    """No pair asks for a sentence.  PPO practises on prompts that do, without labels, and all are
    measured on held-out prompts that do.

    labelled: policies by method, from as many pairs of all kinds.
    """
    world = start.world
    pairs = [row for row in world.preferences if not asks_for_sentence(row["prompt"])][:SMALL]
    reward = reward_model(start, pairs)
    policies = {"SFT": start.sft, "DPO": run_dpo(start, pairs), "PPO": run_ppo(start, reward),
                "DPO, labels for all": labelled["DPO"], "PPO, labels for all": labelled["PPO"]}
    prompts = [prompt for prompt in world.heldout_prompts if asks_for_sentence(prompt)]
    figures = {}
    for name, policy in policies.items():
        figures[name] = measured(start, policy, prompts, lesson.pick(64, 2))
        del figures[name]["rewards"]
    rows = world.heldout_preferences
    accuracy = {kind: evaluate_reward_accuracy(reward, [
        row for row in rows if asks_for_sentence(row["prompt"]) == (kind == "new")])
        for kind in ("known", "new")}
    return {"figures": figures, "accuracy": accuracy, "prompts": len(prompts)}


def said(policy, prompt):
    """A prompt, and the policy's most likely answer."""
    answer, = generate(policy, [prompt], TOKENS, greedy=True)
    return {"prompt": prompt, "answer": answer.text}


def false_alarms(rewards, trials=2000, answers=100, threshold=0.55):
    """How often the SFT model beats itself by this win rate, if so many answers are judged."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(len(rewards), (trials, answers), generator=generator)
    ours, theirs = (rewards[prompts, torch.randint(POOL, prompts.shape, generator=generator)]
                    for _ in range(2))
    rates = ((ours > theirs) + 0.5 * (ours == theirs)).float().mean(1)
    return float((rates > threshold).float().mean())


# --- all of it, seed by seed ----------------------------------------------------------------------

kept = {name: [] for name in ("limits", "main", "seconds", "rates", "few", "kinds", "bayes")}
for seed in lesson.progress(SEEDS, "seeds"):
    start = starting_point(seed, quick=lesson.quick)
    pool = Pool(start)
    kept["limits"].append(limit(pool))
    kept["bayes"].append(start.world.bayes_accuracy(start.world.heldout_preferences))
    figures, seconds = side_by_side(start, pool)
    kept["main"].append(figures)

    reward, reward_seconds = timed(reward_model, start, start.world.preferences[:SMALL])
    kept["seconds"].append(seconds | {"reward": reward_seconds * ALL / SMALL})
    policies = at_rates(start, reward)
    kept["rates"].append({name: {factor: pool.compared(measured(start, policy))
                                 for factor, policy in of_method.items()}
                          for name, of_method in policies.items()})
    usual = {name: of_method[1] for name, of_method in policies.items()}
    kept["few"].append(with_few_pairs(start, pool, usual | {"reward": reward}))
    kept["kinds"].append(on_another_kind(start, usual))
    if seed == 0:
        lesson.keep("false_alarms", false_alarms(pool.rewards))
        lesson.keep("says_at_x10", {name: said(of_method[10], start.world.heldout_prompts[0])
                                    for name, of_method in policies.items()})
for name, values in kept.items():
    lesson.keep(name, values)
lesson.done()
