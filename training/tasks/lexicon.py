"""The words that vary between cases; nearly all are single tokens of the embedded tokenizer."""

from __future__ import annotations

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LEXICON: dict[str, tuple[str, ...]] = {
    "name": _words(
        "Adam Alice Amir Anna Arthur Ben Bella Boris Carla Carlos Chloe Clara Daniel David "
        "Diana Elena Elias Emil Emma Eric Eva Felix Fiona Frank Frida George Gina Greta Hanna "
        "Harry Helen Henry Hugo Ida Igor Iris Ivan Jack James Jane Jonas Julia Karl Kate Kenji "
        "Lara Laura Leo Lena Liam Lily Linda Lisa Louis Lucas Lucy Luis Maria Mark Marta Martin "
        "Max Maya Mia Mila Mira Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Paula "
        "Pedro Peter Petra Priya Ravi Robert Rosa Ruth Sam Sara Simon Sofia Stefan Tara Theo "
        "Thomas Tina Tom Uma Vera Victor Wanda Yara Yuki Zoe"
    ),
    "city": _words(
        "Amsterdam Athens Bangkok Barcelona Berlin Bern Boston Brussels Cairo Chicago Dallas Delhi "
        "Denver Dublin Geneva Hamburg Hanoi Helsinki Istanbul Kiev Kyoto Lagos Lima Lisbon London "
        "Lyon Madrid Miami Milan Montreal Moscow Mumbai Munich Nairobi Naples Osaka Oslo Paris "
        "Porto Prague Riga Rome Seattle Seoul Shanghai Singapore Sofia Stockholm Sydney Tokyo "
        "Toronto Tunis Turin Venice Vienna Vilnius Warsaw Zurich Beijing Hangzhou"
    ),
    "country": _words(
        "Argentina Australia Austria Belgium Brazil Bulgaria Canada Chile China Cuba Denmark Egypt "
        "England Estonia Finland France Germany Greece Hungary Iceland India Ireland Israel Italy "
        "Japan Kenya Korea Latvia Mexico Morocco Nepal Norway Peru Poland Portugal Romania Russia "
        "Spain Sweden Switzerland Turkey Vietnam"
    ),
    "food": _words(
        "apples bread cake carrots cheese cherries chocolate coffee cookies eggs fish grapes honey "
        "juice lemons mangos milk mushrooms noodles nuts olives onions oranges pasta peaches pears "
        "pizza plums potatoes rice salad soup sushi tea toast tomatoes waffles yogurt"
    ),
    "job": _words(
        "baker barber builder butcher carpenter chemist cook dancer dentist doctor "
        "driver farmer firefighter gardener journalist judge lawyer librarian mechanic "
        "musician nurse painter photographer pilot plumber poet sailor scientist singer tailor "
        "teacher waiter writer"
    ),
    "place": _words(
        "attic balcony basement bathroom bedroom cellar closet corridor garage garden hall kitchen "
        "library lobby office pantry shed studio tower workshop"
    ),
    "object": _words(
        "backpack ball basket bicycle blanket book bottle box bracelet bucket camera candle chair "
        "clock coat cup drum flute guitar hammer hat jacket key kite knife ladder lamp laptop "
        "letter map mirror necklace notebook painting pen phone piano pillow plate radio ring rope "
        "scarf shovel table telescope tent ticket umbrella vase violin wallet watch"
    ),
    "colour": _words("black blue brown gold green grey orange pink purple red silver white yellow"),
    "animal": _words(
        "canary cat cow dog donkey duck frog goat goose hamster horse lizard mouse parrot pig pony "
        "rabbit sheep snake turtle"
    ),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "weather": _words("cloudy cold dry foggy hot rainy snowy stormy sunny warm wet windy"),
    "event": _words(
        "auction ceremony class concert conference contest dinner exam festival game interview "
        "lecture lunch match meeting opera parade party picnic race trip wedding"
    ),
    "hobby": _words(
        "baking camping chess climbing cycling dancing drawing fishing gardening hiking knitting "
        "painting photography pottery reading running sailing singing skating skiing surfing "
        "swimming tennis yoga"
    ),
    "secret": _words(
        "anchor arrow breeze bridge castle comet copper coral crystal desert diamond dragon eagle "
        "ember falcon feather forest glacier harbor island ivory jungle lantern magnet marble "
        "meadow mountain ocean pearl pepper phoenix planet raven river rocket saffron shadow storm "
        "sunset thunder tiger valley velvet volcano walnut willow winter zebra"
    ),
}

FILLER = (
    "The morning was quiet.",
    "A small bird sang near the window.",
    "It rained a little in the afternoon.",
    "The road to the village is long.",
    "Nobody said much about it.",
    "The train was late again.",
    "There were many people in the street.",
    "The shop opens early.",
    "We walked along the river for a while.",
    "The old house has a new roof.",
    "Some days are better than others.",
    "The children played until the evening.",
    "The news was not very good.",
    "It was a fine day for a walk.",
    "The water in the lake is clear.",
    "They talked about the weather.",
    "The door was open and the light was on.",
    "Please keep the room clean.",
    "The list is long but it is not complete.",
    "The bus stops in front of the school.",
    "Later the wind became stronger.",
    "Nothing else happened that week.",
)


def draw(rng: Random, kind: str) -> str:
    """A random value of a kind: a word of the lexicon, or digits for the numeric kinds."""
    if kind == "age":
        return str(rng.randint(11, 99))
    if kind == "number":
        return str(rng.randint(2, 99))
    if kind == "degrees":
        return str(rng.randint(1, 39))
    if kind == "code":
        return str(rng.randint(1000, 9999))
    if kind == "clock":
        return f"{rng.randint(1, 23)}:{rng.randint(0, 59):02d}"
    return rng.choice(LEXICON[kind])
