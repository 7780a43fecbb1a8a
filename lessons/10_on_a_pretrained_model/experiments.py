"""The numbers of lesson 10.

The long runs are those of the command that the article names, one for each seed, and their results
lie in full/: they need a file of real rows, which is not part of this project.
"""

import json

import torch

from data import PREFERENCE_DATA
from data.preferences import check_preferences
from lessons.adapt import written
from lessons.course import LESSONS, Lesson
from lessons.pretrained import collate, ids_of, load, response_logps, tiny

lesson = Lesson("10_on_a_pretrained_model", "experiments")
model, tokenizer = lesson.pick(load, tiny)()  # a quick run takes a random model
FULL = LESSONS / lesson.name / "full"


def shown(ids):
    """Tokens, with their spaces and line breaks."""
    texts = (json.dumps(tokenizer.decode([i]), ensure_ascii=False)[1:-1] for i in ids)
    return " ".join(f"`{text}`" for text in texts)


def where_they_meet(row, prompt):
    """For a prompt as text: its last token and the first two of the chosen response, and the
    difference of both log-probabilities; in two parts, and as one text cut after the prompt."""
    length = len(ids_of(tokenizer, prompt))
    found = []
    for as_one in (False, True):
        ids = [ids_of(tokenizer, prompt + row[side]) if as_one
               else ids_of(tokenizer, prompt) + ids_of(tokenizer, row[side])
               for side in ("chosen", "rejected")]
        with torch.no_grad():
            batch = collate([(each[:length], each[length:]) for each in ids])
            chosen, rejected = response_logps(model, batch).tolist()
        tokens = f"{shown(ids[0][length - 1:length])} / {shown(ids[0][length:length + 2])}"
        found.append({"tokens": tokens, "difference": chosen - rejected})
    return found


row, = (row for row in check_preferences(PREFERENCE_DATA) if row["prompt"] == "Who wrote Hamlet?")
lesson.keep("meet", {way: where_they_meet(row, prompt)
                     for way, prompt in written(tokenizer, row["prompt"]).items()})
lesson.keep("full", [json.loads(path.read_text(encoding="utf-8"))
                     for path in sorted(FULL.glob("seed-*.json"))])
lesson.keep("trl", json.loads((FULL / "beside-trl.json").read_text(encoding="utf-8")))
lesson.done()
