"""The figures of `lessons.compare`.

Each function returns its path, or None without matplotlib or if there is nothing to show.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from minigpt.plots import COLOURS, pyplot, running_mean

SMOOTH = 5  # width of the running mean, in episodes


def save_frontier(path: Path, results: Mapping[str, Any]) -> Path | None:
    """True reward over KL: the limit, PPO's path during training, and where each method ended."""
    plt = pyplot()
    if plt is None or "limit" not in results:
        return None
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    limit, history = results["limit"], results.get("ppo_history", {"objective/kl_exact": []})
    furthest = max([limit["kl"][-1], *history["objective/kl_exact"],
                    *(figures["kl_nats_per_response"] for figures in results["methods"].values())])
    kls = [*limit["kl"], furthest]  # beyond its last point the limit is flat
    best = [*limit["true_reward"], limit["true_reward"][-1]]
    axis.plot(kls, best, color="black", label="estimated limit for any policy")
    axis.fill_between(kls, best, axis.get_ylim()[1], color="grey", alpha=0.12)
    if "true_reward" in history:
        axis.plot(running_mean(history["objective/kl_exact"], SMOOTH),
                  running_mean(history["true_reward"], SMOOTH), color=COLOURS[1], alpha=0.5,
                  linewidth=1.2, label="PPO during training (training prompts)")
    for row in results.get("sweep", []):
        point = row["kl_nats_per_response"], row["true_reward"]
        axis.plot(*point, "s", color=COLOURS[0], alpha=0.5)
        axis.annotate(f"DPO, beta {row['beta']:g}", point, fontsize=8, xytext=(5, -11),
                      textcoords="offset points")
    colours = {"SFT": "black", "PPO": COLOURS[1], "DPO": COLOURS[0]}
    drawn: list[tuple[float, float]] = []
    for name, figures in results["methods"].items():
        kl, reward = figures["kl_nats_per_response"], figures["true_reward"]
        crowded = any(abs(kl - x) < furthest / 5 and abs(reward - y) < 0.1 for x, y in drawn)
        drawn.append((kl, reward))
        axis.plot(kl, reward, "o", color=colours.get(name, COLOURS[2]), markersize=9)
        axis.annotate(name, (kl, reward), xytext=(-8 if crowded else 8, 6),
                      textcoords="offset points", fontweight="bold",
                      horizontalalignment="right" if crowded else "left")
    axis.set(xlabel="KL to the SFT model (nats per response)", ylabel="true reward",
             title="How close each method comes to the best possible")
    axis.legend(loc="lower right", frameon=False)
    figure.savefig(path)
    plt.close(figure)
    return path


def save_frontier_of_seeds(path: Path, results: Sequence[Mapping[str, Any]]) -> Path | None:
    """Each method at its mean over the seeds, with whiskers to the least and the most; the limits.
    """
    plt = pyplot()
    if plt is None or "limit" not in results[0]:
        return None
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    for number, one in enumerate(results):
        axis.plot(one["limit"]["kl"], one["limit"]["true_reward"], color="black", alpha=0.35,
                  label="" if number else "estimated limit for any policy, for each seed")
    names = list(results[0]["methods"])
    for number, name in enumerate(names):
        x, y = ([one["methods"][name][key] for one in results]
                for key in ("kl_nats_per_response", "true_reward"))
        middle = mean(x), mean(y)
        spread = [[[middle[i] - min(of)], [max(of) - middle[i]]] for i, of in enumerate((x, y))]
        axis.errorbar(*middle, xerr=spread[0], yerr=spread[1], capsize=3, linewidth=1,
                      marker="osD^vP"[number // len(COLOURS) % 6],
                      color=COLOURS[number % len(COLOURS)])
        axis.annotate(name, middle, xytext=(6, 5), textcoords="offset points", fontsize=8)
    axis.set(xlabel="KL to the SFT model (nats per response)", ylabel="true reward",
             title=f"How close each method comes to the best possible ({len(results)} seeds: "
                   "mean, least, most)")
    axis.legend(loc="lower right", frameon=False)
    figure.savefig(path)
    plt.close(figure)
    return path


def save_ppo_over_time(path: Path, results: Mapping[str, Any]) -> Path | None:
    """PPO by episode: the reward model's score, the true reward and the KL.

    Score and true reward diverge when the policy exploits the reward model.
    """
    plt = pyplot()
    if plt is None or "ppo_history" not in results:
        return None
    history = results["ppo_history"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for name, label in (("objective/scores", "reward model (proxy)"),
                        ("true_reward", "true reward")):
        if name in history:
            left.plot(running_mean(history[name], SMOOTH), label=label)
    left.set(xlabel="episode", ylabel="reward", title="What PPO maximises and what we want")
    left.legend(frameon=False)
    right.plot(running_mean(history["objective/kl_exact"], SMOOTH))
    right.set(xlabel="episode", ylabel="nats per response", title="KL to the SFT model")
    figure.savefig(path)
    plt.close(figure)
    return path
