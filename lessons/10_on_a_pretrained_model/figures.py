"""The figures and tables of lesson 10, from what experiments.py kept."""

from lessons.course import Lesson, spread
from lessons.diagrams import Box, draw_pipeline
from minigpt.plots import COLOURS, running_mean

lesson = Lesson("10_on_a_pretrained_model", "figures")
full, trl = lesson.kept("full"), lesson.kept("trl")


def over_seeds(form, *keys):
    """A figure over the seeds; several keys lead down into the results."""
    values = []
    for value in full:
        for key in keys:
            value = value[key]
        values.append(value)
    return spread(values, form)


# %% Where prompt and response meet
lesson.table("meet", ["prompt", "in two parts", "log-prob, chosen minus rejected",
                      "as one text, cut", "log-prob, chosen minus rejected"],
             [[way, *(cell for one in found
                      for cell in (one["tokens"], f"{one['difference']:+.2f}"))]
              for way, found in lesson.kept("meet").items()])
lesson.table("merged", ["prompt", "responses whose tokens change"],
             [[way, f"{share:.1%}"] for way, share in full[0]["merged_shares"].items()])

# %% The long runs
lesson.number("seeds", str(len(full)))
lesson.number("full_pairs", str(full[0]["pairs"]))
lesson.number("full_heldout", str(full[0]["heldout_pairs"]))
lesson.number("full_memory", max(run["peak_memory_mb"] for run in full) / 1000, ".1f")
lesson.number("full_accuracy", over_seeds(".3f", "after", "accuracy"))
lesson.number("full_worst", min(run["after"]["accuracy"] for run in full), ".3f")
lesson.number("full_by_logps", over_seeds(".3f", "before", "accuracy_by_logps"))
lesson.number("full_kl", over_seeds(".1f", "after", "kl_nats_per_response"))
lesson.table("full", ["on held-out rows", "before", "after"],
             [[title, *(over_seeds(form, when, name) for when in ("before", "after"))]
              for name, title, form in (
                  ("accuracy", "ranked right, by implicit rewards", ".3f"),
                  ("accuracy_by_logps", "ranked right, by log-probabilities alone", ".3f"),
                  ("log_ratio_chosen", "log-ratio of the chosen, nats", "+.2f"),
                  ("log_ratio_rejected", "log-ratio of the rejected, nats", "+.2f"),
                  ("kl_nats_per_response", "KL, nats per response", ".2f"),
                  ("finished_share", "answers that end by themselves", ".2f"),
                  ("response_tokens", "tokens in an answer", ".0f"),
                  ("repetition", "repetition", ".3f"))])
lesson.table("full_answers", ["question", "before", "after"],
             [[" ".join(text.split()) for text in texts] for texts in full[0]["answers"]])
figure, axis = lesson.panels(height=3.2)
for each in full:
    for side, colour in zip(("chosen", "rejected"), COLOURS, strict=False):
        nats = [step[f"rewards/{side}"] / each["settings"]["beta"] for step in each["history"]]
        axis.plot(running_mean(nats, 8), color=colour, label=side if each is full[0] else None)
axis.axhline(0, color="grey", linewidth=1, linestyle=":")
axis.set(xlabel="optimizer step", ylabel="log pi / ref of training pairs (nats)")
axis.legend()
lesson.figure("full", figure, f"One pass over {full[0]['pairs']} pairs of real instructions: both "
              "log-ratios start at 0, and a gap opens. One line per seed; running mean of 8 steps.")

# %% Beside TRL
sides = trl["ours"], trl["theirs"]
lesson.number("trl_pairs", str(trl["pairs"]))
lesson.number("trl_ids", "the same" if trl["same_ids_in_first_batch"] else "not the same")
lesson.number("trl_difference", f"{trl['largest_difference_of_logps']:.1g}")
lesson.table("trl", ["", "this loop", "TRL"], [
    *([f"`{name}`, first batch", *(f"{side['first'][name]:.4f}" for side in sides)]
      for name in ("loss", "logps/chosen", "logps/rejected")),
    ["loss, last steps", *(f"{side['last_loss']:.3f}" for side in sides)],
    ["held-out pairs ranked right", *(f"{side['accuracy']:.3f}" for side in sides)],
    ["time (this loop = 1)", "1", f"{trl['times_as_fast']:.1f}"],
    ["peak memory (this loop = 1)", "1", f"{1 / trl['share_of_memory']:.1f}"]])

# %% The whole of it
figure, axis = lesson.panels()
draw_pipeline(axis, {
    "row": Box(0, 0.5, "prompt, chosen,\nrejected", "data"),
    "ids": Box(1, 0.5, "chat template,\ntokens, masks", "data"),
    "policy": Box(2.2, 0, "model,\nadapters on", "trained"),
    "reference": Box(2.2, 1, "the same model,\nadapters off", "frozen"),
    "loss": Box(3.4, 0.5, "DPO loss", "data"),
}, [("row", "ids", ""), ("ids", "policy", ""), ("ids", "reference", ""),
    ("policy", "loss", "2 log-probs"), ("reference", "loss", "2 log-probs")])
lesson.figure("pipeline", figure, "One model in memory, run twice in each step: with its adapters "
              "it is the policy, without them the reference.")
lesson.done()
