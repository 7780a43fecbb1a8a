"""The facts of the little world, as plain tables.

They are few on purpose.  The bottleneck of the whole pipeline is the number of comparisons that the
reward model needs before it can tell right answers from wrong ones, and that grows with the number
of facts.
"""

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo",
    "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi",
}

OPPOSITES = {"hot": "cold", "big": "small", "fast": "slow", "old": "young", "rich": "poor"}
OPPOSITES |= {opposite: word for word, opposite in OPPOSITES.items()}  # both ways

YOUNG_ANIMALS = {"dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb",
                 "bear": "cub"}

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "lemons": "yellow",
           "sapphires": "blue"}

WORDS = ("garden", "window", "bridge")

FIRST_OPERANDS, SECOND_OPERANDS = range(1, 4), range(1, 3)  # of the sums
