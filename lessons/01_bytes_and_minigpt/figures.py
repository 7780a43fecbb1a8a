"""The article's numbers and its diagram:  python -m lessons.build 01 --figures"""

import math

from lessons.course import Lesson
from lessons.diagrams import Box, draw_pipeline
from lessons.start import SIZE
from minigpt import EOS, PAD, SEP, MiniGPT

lesson = Lesson("01_bytes_and_minigpt", "figures")
losses = lesson.kept("losses")
lesson.number("eos", str(EOS))
lesson.number("sep", str(SEP))
lesson.number("pad", str(PAD))
lesson.number("ln_256", math.log(256), ".3f")
lesson.number("parameters", f"{MiniGPT().count_parameters():,}")
lesson.number("parameters_small", f"{MiniGPT(**SIZE).count_parameters():,}")
lesson.number("loss_untrained", losses["untrained"], ".2f")
lesson.number("loss_trained", losses["trained"], ".2f")
lesson.number("without_positions_5_seeds", losses["without positions"], ".2f")
lesson.number("positions_help", [without - with_table for without, with_table in zip(
    losses["without positions"], losses["trained"], strict=True)], ".3f")

figure, axis = lesson.panels(height=2.6)
draw_pipeline(axis, {
    "text": Box(0, 0, "text", "data"), "ids": Box(1, 0, "bytes,\nids 0 to 255", "data"),
    "model": Box(2, 0, "MiniGPT", "trained"),
    "logits": Box(3, 0, "256 logits\nfor the next byte", "data"),
}, [("text", "ids", "encode"), ("ids", "model", "(B, T)"), ("model", "logits", "(B, T, 256)")])
lesson.figure("pipeline", figure, "Bytes go in; a distribution over the next byte comes out, at "
              "every position. One model is in memory.")
lesson.done()
