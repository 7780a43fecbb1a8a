"""Scripts to run and articles to read."""

import minigpt  # noqa: F401 - before `data`, see minigpt/hidden.py
