"""Rows from files, the lesson's own rows, and a little world whose true reward is known."""

from data.files import DataError
from data.lesson_rows import PREFERENCE_DATA
from data.preferences import load_preferences, load_prompts, load_sft, load_unpaired
from data.world import World, WorldConfig

__all__ = ["PREFERENCE_DATA", "DataError", "World", "WorldConfig", "load_preferences",
           "load_prompts", "load_sft", "load_unpaired"]
