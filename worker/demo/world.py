"""The invented valley that the demo model knows: its people, towns and things, and how a text refers to them.

`stories.py` and `lessons.py` draw from these tables, so a story never contradicts an answer. All of it was made
up for this project. Nothing here is read when the model runs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Person:
    name: str
    she: bool
    job: str  # with no article: "bookbinder"
    town: str
    pet: str
    pet_name: str
    food: str

    @property
    def he(self) -> str:
        return "she" if self.she else "he"

    @property
    def him(self) -> str:
        return "her" if self.she else "him"

    @property
    def his(self) -> str:
        return "her" if self.she else "his"


@dataclass(frozen=True)
class Town:
    name: str
    place: str  # "on the river Fenn"
    pride: str  # "its paper mill"
    spots: tuple[str, ...]  # places inside the town, each to be put after "in", "at" or "behind"


PEOPLE = (
    Person("Mira", True, "bookbinder", "Alder Bridge", "cat", "Inky", "plum cake"),
    Person("Tomas", False, "miller", "Stonewater", "dog", "Barley", "fresh bread"),
    Person("Elsa", True, "lighthouse keeper", "Gull Point", "gull", "Pip", "fish soup"),
    Person("Otto", False, "clockmaker", "Highfield", "owl", "Tick", "honey cake"),
    Person("Nina", True, "baker", "Alder Bridge", "goose", "Flour", "apple pie"),
    Person("Jonas", False, "ferryman", "Stonewater", "duck", "Ripple", "roasted corn"),
    Person("Ada", True, "teacher", "Highfield", "mouse", "Comma", "sweet pears"),
    Person("Felix", False, "gardener", "Willow End", "hedgehog", "Thistle", "carrot soup"),
    Person("Ruth", True, "weaver", "Willow End", "goat", "Thread", "goat cheese"),
    Person("Emil", False, "postman", "Gull Point", "pony", "Letter", "oat cakes"),
    Person("Clara", True, "painter", "Alder Bridge", "parrot", "Azure", "ripe cherries"),
    Person("Hugo", False, "smith", "Highfield", "horse", "Anvil", "bean stew"),
)

TOWNS = (
    Town("Alder Bridge", "on the river Fenn", "its paper mill", ("the paper mill", "the old bridge", "the market")),
    Town("Stonewater", "on the shore of a lake", "its water wheel", ("the water wheel", "the ferry", "the barn")),
    Town("Gull Point", "by the sea", "its lighthouse", ("the lighthouse", "the harbour", "the boat house")),
    Town("Highfield", "on a green hill", "its clock tower", ("the clock tower", "the school", "the forge")),
    Town("Willow End", "at the edge of the forest", "its gardens", ("the gardens", "the well", "the loom house")),
)

OBJECTS = (
    "silver key", "red lantern", "small brass bell", "blue scarf", "wooden flute", "leather book",
    "golden button", "round mirror", "paper kite", "copper coin", "green umbrella", "little compass",
)  # fmt: skip

SEASONS = ("spring", "summer", "autumn", "winter")

# Names of people from outside the valley: some that are common, and syllables for many that nobody has, so that the
# model learns to keep to whatever name it reads.
NAMES = """
    Anna Ben Lily Tim Tom Max Emma Lucy Jack Sara Sam Paul Julia Peter Marie Leo Ella Noah Alice Bob Maria David Eva
    Karl Lena Omar Yuki Ivan Rosa Finn
""".split()
_STARTS = ("", *"B D F K L M N P R S T V W Y Br Tr Gr Sh Th Z G".split())
_VOWELS = "a e i o u ai ee".split()
_MIDDLES = "l r n m t k v s d nd rt ll b ng".split()
_ENDS = ("", *"n s l x ra lo na mir bert th vin".split())


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`, the early ones more often: even odds would leave the model's best guess a near tie."""
    weights = [1.0 / (i + 2.0) for i in range(len(options))]
    return rng.choices(options, weights)[0]


def other(rng: random.Random, than: Person) -> Person:
    """A person of the valley who is not `than`; everybody has friends of their own who come first."""
    first = PEOPLE.index(than) + 1 if than in PEOPLE else 0
    return pick(rng, [p for p in (*PEOPLE[first:], *PEOPLE[:first]) if p.name != than.name])


def town_of(person: Person) -> Town:
    return next(t for t in TOWNS if t.name == person.town)


def visitor(rng: random.Random) -> Person:
    """Somebody with a made-up name from outside the valley, without a town of their own in it."""
    town = pick(rng, TOWNS)
    trade = pick(rng, ("traveller", "singer", "pedlar", "sailor", "map maker"))
    pet, pet_name = pick(rng, (("dog", "Biscuit"), ("cat", "Shadow"), ("donkey", "Pepper")))
    return Person(
        strange_name(rng), rng.random() < 0.5, trade, town.name, pet, pet_name, pick(rng, ("soup", "bread", "cheese"))
    )


def strange_name(rng: random.Random) -> str:
    """A name from outside the valley: a common one, or one that most likely nobody has."""
    if rng.random() < 0.3:
        return rng.choice(NAMES)
    parts = [rng.choice(_STARTS), rng.choice(_VOWELS), rng.choice(_MIDDLES), rng.choice(_VOWELS), rng.choice(_ENDS)]
    return "".join(parts).capitalize()


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
