"""The article's numbers, tables and figures:  python -m lessons.build 02 --figures"""

import torch

from data.examples import preference_examples
from lessons.course import Lesson
from lessons.start import starting_point
from minigpt.batching import Batches
from minigpt.logprobs import response_logits, token_logps
from minigpt.masks import predictor_columns
from minigpt.tokenizer import EOS, PAD, SEP

lesson = Lesson("02_sft", "figures")
start = starting_point(quick=lesson.quick)

NAMES = {SEP: "SEP", PAD: "PAD", EOS: "EOS", ord(" "): "␣"}
SHADES = {0: "#e4e4e4", 1: "#cdeade", 2: "#fbdcc8", -1: "#ffffff"}  # by segment


# --- the tensors of one preference pair: every loss of this course is computed from such ones ---

def name_of(token: int) -> str:
    return NAMES.get(token, chr(token))


def tensors_of(pair: dict[str, str]) -> tuple[list[int], list[float], dict[str, list[str]]]:
    """Segments (T,) and log-probabilities (T,) of a pair, and T texts for each row of the figure."""
    batch = Batches(preference_examples([pair], start.sft.max_seq_len), 1).collate([0])
    with torch.no_grad():
        logps = token_logps(start.sft, batch)[0].tolist()
        likeliest = iter(response_logits(start.sft, batch).argmax(-1).tolist())
    ids, segments = batch.token_ids[0].tolist(), batch.segments[0].tolist()
    mask = batch.response_mask[0].tolist()
    columns = predictor_columns(batch.segments)[0].tolist()
    return segments, logps, {
        "column": [str(t) for t in range(len(ids))],
        "byte": [name_of(token) for token in ids],
        "token_ids": [str(token) for token in ids],
        "segments": [str(segment) for segment in segments],
        "response_mask": [str(int(scored)) for scored in mask],
        "predicted from": [str(columns[t]) if mask[t] else "" for t in range(len(ids))],
        "likeliest there": [name_of(next(likeliest)) if scored else "" for scored in mask],
        "log p of the byte": [f"{logps[t]:.2f}" if mask[t] else "" for t in range(len(ids))],
    }


def draw_tensors(pair: dict[str, str]) -> None:
    segments, logps, rows = tensors_of(pair)
    figure, axis = lesson.panels()
    figure.set_size_inches(7.8, 0.25 * (len(rows) + 2))
    sizes = {"column": 6.5, "log p of the byte": 6.5}
    for y, (name, cells) in enumerate(rows.items()):
        axis.text(-0.8, y, name, ha="right", va="center", fontsize=8)
        for t, cell in enumerate(cells):
            if name != "column":
                axis.add_patch(lesson.plt.Rectangle((t - 0.5, y - 0.5), 1, 1, edgecolor="white",
                                                    facecolor=SHADES[segments[t]]))
            axis.text(t, y, cell, ha="center", va="center", fontsize=sizes.get(name, 7.5))
    for segment, name in enumerate(("prompt: read, not scored", "chosen", "rejected")):
        where = [t for t in range(len(segments)) if segments[t] == segment]
        total = f"\nsum {sum(logps[t] for t in where):.2f}" * (segment > 0)
        axis.text((where[0] + where[-1]) / 2, len(rows) - 0.3, name + total, ha="center", va="top",
                  fontsize=8)
    axis.set(xlim=(-4.8, len(segments) - 0.4), ylim=(len(rows) + 1.1, -0.6))
    axis.set_axis_off()
    lesson.figure("tensors", figure, "One preference pair as the model reads it, a batch of B = 1 "
                  f"row and T = {len(segments)} columns. A column's logits predict the next byte, "
                  f"and the first byte of either response is predicted from SEP, column "
                  f"{segments.index(1) - 1}. Only the coloured columns enter a loss.")


draw_tensors({"prompt": "Sum of 1 plus 2?", "chosen": "3.", "rejected": "4."})
