"""What there is to know in the little world: plain tables, no code.

They are small on purpose.  What limits the whole pipeline is how many comparisons the reward model needs to see before
it can tell a right answer from a wrong one, and that grows with the number of facts.
"""

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo",
    "Peru": "Lima", "Kenya": "Nairobi",
}

OPPOSITES = {"hot": "cold", "big": "small", "fast": "slow", "old": "young", "rich": "poor"}
OPPOSITES |= {opposite: word for word, opposite in OPPOSITES.items()}  # both ways

YOUNG_ANIMALS = {"dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "bear": "cub"}

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "lemons": "yellow", "sapphires": "blue"}

WORDS = ("garden", "window", "bridge")

FIRST_OPERANDS, SECOND_OPERANDS = range(1, 4), range(1, 3)  # of the small sums
