"""What there is to know in the little world: plain tables, no code."""

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo",
    "Greece": "Athens", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi", "Poland": "Warsaw", "Austria": "Vienna",
    "Ireland": "Dublin", "China": "Beijing", "Russia": "Moscow",
    "Germany": "Berlin",
}

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "open": "shut", "wet": "dry",
    "old": "young", "rich": "poor", "full": "hollow", "high": "low", "loud": "quiet", "clean": "dirty",
}
OPPOSITES |= {opposite: word for word, opposite in OPPOSITES.items()}  # both ways

YOUNG_ANIMALS = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid",
    "duck": "duckling", "hen": "chick", "bear": "cub", "deer": "fawn",
}

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "lemons": "yellow", "carrots": "orange",
    "chocolate": "brown", "sapphires": "blue", "violets": "purple", "flamingos": "pink",
}

WORDS = (
    "garden", "window", "bridge", "kitchen", "forest", "river", "market",
)

FIRST_OPERANDS, SECOND_OPERANDS = range(1, 7), range(1, 3)  # of the small sums
