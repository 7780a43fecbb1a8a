"""What there is to know in the little world: plain tables, no code."""

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo",
    "Greece": "Athens", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi", "Poland": "Warsaw", "Austria": "Vienna",
    "Ireland": "Dublin", "Sweden": "Stockholm", "Finland": "Helsinki", "China": "Beijing", "Russia": "Moscow",
    "Germany": "Berlin", "Chile": "Santiago", "Iran": "Tehran", "Qatar": "Doha", "England": "London",
}

OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "sad": "joyful", "open": "shut", "wet": "dry", "old":
    "young", "rich": "poor", "full": "hollow", "high": "low", "early": "late", "thick": "thin", "loud": "quiet",
    "clean": "dirty",
}
OPPOSITES |= {opposite: word for word, opposite in OPPOSITES.items()}  # both ways

YOUNG_ANIMALS = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "duck":
    "duckling", "hen": "chick", "bear": "cub", "deer": "fawn", "pig": "piglet", "frog": "tadpole",
}

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "lemons": "yellow", "carrots": "orange",
    "chocolate": "brown", "sapphires": "blue", "violets": "purple", "flamingos": "pink",
}

WORDS = (
    "garden", "window", "bridge", "kitchen", "forest", "river", "market", "pencil", "animal", "island",
)

NUMBERS = range(1, 5)  # operands of the small sums
