"""Conversations that the demo model learns: the valley, small sums, Quire itself, and requests for stories.

`make.py` trains on them through the chat template. What the model cannot know it is taught to decline.
"""

import random
import string
from dataclasses import dataclass

from worker.demo.stories import story
from worker.demo.world import OBJECTS, PEOPLE, TOWNS, a, pick, strange_name, visitor

Turn = tuple[str, str]  # what the user says, what the model answers


@dataclass(frozen=True)
class Lesson:
    """One document: a conversation in the chat template, or as plain text one turn (a story has an empty question)."""

    turns: tuple[Turn, ...]
    chat: bool = True
    system: str | None = None


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer in short and simple sentences.",
    "You are the demo model of Quire. You know the valley, small sums and Quire.",
)

HELLO = "Hello! Ask me about the valley, about small sums or about Quire, or ask me for a story."
TOO_LARGE = "These numbers are too large for me. I only know small sums."
UNKNOWN = "I do not know that. I only know the valley, small sums and Quire."

# Questions about Quire -> the answer. The words are those of the project's design.
QUIRE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("What is Quire?", "Tell me about Quire.", "What does Quire do?", "Explain Quire."),
        "Quire serves language models from paged memory that is spread over many GPUs and owned by one ledger.",
    ),
    (
        ("What is a block?", "Explain blocks.", "What is a block in Quire?"),
        "A block is a fixed run of token positions. It is the unit of memory, and it holds 16 tokens unless you "
        "set it.",
    ),
    (
        ("What is a slot?", "Explain slots.", "What is a slot in Quire?"),
        "A slot is the place of one token in a block.",
    ),
    (
        ("What is a table?", "What is a block table?", "Explain block tables."),
        "A table lists the blocks of a sequence in order. It says where each logical block lies in a pool.",
    ),
    (
        ("What is a pool?", "Explain pools.", "What is a pool in Quire?"),
        "A pool is the bytes: all blocks of one device, or of the memory of one node.",
    ),
    (
        ("What is the ledger?", "What is a ledger?", "What does the ledger do?"),
        "The ledger counts the blocks of a pool: who holds each block, how often, and what is moving or cached.",
    ),
    (
        ("What is a lease?", "Explain leases.", "What is a lease in Quire?"),
        "A lease lets a sequence run on to a given position without asking again.",
    ),
    (
        ("What does the scheduler do?", "What is the scheduler?", "Who owns the block tables?"),
        "The scheduler owns every block table. It decides who runs, where, and how far.",
    ),
    (
        ("What does a worker do?", "What is a worker?", "Who owns the bytes?"),
        "A worker owns the bytes of one accelerator. It obeys plans, runs steps and sends tokens.",
    ),
    (
        ("What does the gateway do?", "What is a gateway?", "Where do requests arrive?"),
        "The gateway is the front door. It checks requests, turns text into tokens and streams the answer.",
    ),
    (
        ("What is paged attention?", "Explain paged attention."),
        "Paged attention reads keys and values from blocks that lie anywhere in memory, so that almost nothing is "
        "wasted.",
    ),
    (
        ("What is a prefix?", "How are prefixes shared?", "What is prefix caching?"),
        "Requests that begin with the same tokens share the blocks of that beginning, so it is computed only once.",
    ),
    (
        ("What happens when memory is full?", "What is preemption?", "What if there is no free block?"),
        "Then a request waits, moves to other memory, or is computed again later. It gets slower, but it is never "
        "lost.",
    ),
    (
        ("How do I start Quire?", "How can I start a cluster?"),
        "Run quire up. When you are done, run quire down.",
    ),
    (
        ("How do I see the blocks?", "How can I watch Quire?"),
        "Run quire top. It shows every pool as a map of blocks.",
    ),
    (
        ("How large should a pool be?", "How many blocks do I need?"),
        "Run quire size. It needs the number of requests, their length and a safety factor.",
    ),
    (
        ("What does the name Quire mean?", "What is a quire?", "Why is it called Quire?"),
        "A quire is a gathering of pages.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What can you do?"),
        "I am the demo model of Quire. I am very small. I know the valley, small sums and Quire, and I tell stories.",
    ),
)

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning!", "Hello there"), HELLO),
    (("Thank you!", "Thanks", "Thank you", "Thanks!"), "You are welcome!"),
    (("Bye", "Goodbye!", "Bye!"), "Goodbye! Come back soon."),
    (("How are you?", "How are you today?"), "I am well, thank you. What would you like to know?"),
)


def lesson(rng: random.Random) -> Lesson:
    """A story, a plain question with its answer, a page of sums, or a conversation of one to four turns."""
    which = rng.random()
    if which < 0.15:
        return Lesson((("", story(rng)),), chat=False)
    if which < 0.22:
        return Lesson((turn(rng),), chat=False)
    if which < 0.36:
        # Sums are short, so that among stories alone the model would hardly ever see one.
        return Lesson(tuple(_careless(rng, sum_turn(rng)) for _ in range(rng.randint(6, 12))))
    system = pick(rng, SYSTEM_PROMPTS) if rng.random() < 0.2 else None
    num_turns = rng.choices((1, 2, 3, 4), (6, 3, 2, 1))[0]
    turns = tuple(turn(rng) for _ in range(num_turns))
    return Lesson(introduced(rng, turns) if rng.random() < 0.15 else turns, system=system)


def introduced(rng: random.Random, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The same conversation with somebody who says a name first and asks for it at the end: a lesson in copying."""
    name = strange_name(rng)
    hello = (rng.choice((f"My name is {name}.", f"I am {name}.", f"Hello, I am {name}.")), f"Hello, {name}!")
    again = (rng.choice(("What is my name?", "Who am I?", "Do you know my name?")), f"Your name is {name}.")
    return hello, *turns[: rng.randint(0, 1)], again


def turn(rng: random.Random) -> Turn:
    kind = rng.choices((person_turn, town_turn, sum_turn, quire_turn, story_turn, unknown_turn), (7, 3, 5, 5, 2, 2))[0]
    return _careless(rng, kind(rng))


def _careless(rng: random.Random, asked_and_answer: Turn) -> Turn:
    """People write carelessly: in lower case, or with no mark at the end."""
    asked, answer = asked_and_answer
    careless = rng.random()
    if careless < 0.15:
        asked = asked.lower()
    if careless < 0.08 or careless > 0.95:
        asked = asked.rstrip(".?!")
    return asked, answer


def person_turn(rng: random.Random) -> Turn:
    p = rng.choice(PEOPLE)
    lives = f"{p.name} lives in {p.town}."
    works = f"{p.name} is the {p.job} of {p.town}."
    pet = f"{p.name} has {a(p.pet)} called {p.pet_name}."
    food = f"{p.name} likes {p.food}."
    return rng.choice(
        (
            (f"Where does {p.name} live?", lives),
            (f"In which town does {p.name} live?", lives),
            (f"What is the job of {p.name}?", works),
            (f"What does {p.name} do?", works),
            (f"Who is the {p.job}?", works),
            (f"Who is the {p.job} of {p.town}?", works),
            (f"Who is {p.name}?", f"{works} {pet}"),
            (f"Tell me about {p.name}.", f"{works} {pet} {food}"),
            (f"What pet does {p.name} have?", pet),
            (f"Does {p.name} have a pet?", f"Yes. {pet}"),
            (f"What is the name of the {p.pet}?", f"The {p.pet} of {p.name} is called {p.pet_name}."),
            (f"Who is {p.pet_name}?", f"{p.pet_name} is the {p.pet} of {p.name}."),
            (f"What does {p.name} like to eat?", food),
            (f"What does {p.name} eat?", food),
            (f"Who likes {p.food}?", food),
        )
    )


def town_turn(rng: random.Random) -> Turn:
    t = rng.choice(TOWNS)
    where = f"{t.name} is a town {t.place}."
    pride = f"{t.name} is known for {t.pride}."
    names = [p.name for p in PEOPLE if p.town == t.name]
    people = f"{', '.join(names[:-1])} and {names[-1]} live in {t.name}."
    towns = f"The towns of the valley are {', '.join(x.name for x in TOWNS[:-1])} and {TOWNS[-1].name}."
    return rng.choice(
        (
            (f"Where is {t.name}?", where),
            (f"Where does {t.name} lie?", where),
            (f"What is {t.name} known for?", pride),
            (f"What is {t.name}?", where),
            (f"Who lives in {t.name}?", people),
            (f"Tell me about {t.name}.", f"{where} It is known for {t.pride}. {people}"),
            (f"Which town is known for {t.pride}?", pride),
            (
                rng.choice(("What are the towns of the valley?", "What is the valley?", "Tell me about the valley.")),
                towns,
            ),
        )
    )


def sum_turn(rng: random.Random) -> Turn:
    if rng.random() < 0.06:
        words, sign = rng.choice((("plus", "+"), ("minus", "-"), ("times", "*")))
        x, y = rng.randint(40, 999), rng.randint(13, 999)
        return rng.choice((f"What is {x} {words} {y}?", f"What is {x} {sign} {y}?", f"{x}{sign}{y}")), TOO_LARGE
    kind = rng.choices("+-*", (5, 3, 2))[0]
    if kind == "+":
        x, y = rng.randint(0, 12), rng.randint(0, 12)
        words, result = "plus", x + y
    elif kind == "-":
        y, result = rng.randint(0, 10), rng.randint(0, 10)
        words, x = "minus", y + result
    else:
        x, y = rng.randint(0, 6), rng.randint(0, 6)
        words, result = "times", x * y
    signs = rng.choice((f"{x} {kind} {y}", f"{x}{kind}{y}"))
    asked = rng.choice((f"What is {x} {words} {y}?", f"What is {signs}?", signs, f"{signs} =", f"{x} {words} {y}?"))
    return asked, f"{x} {words} {y} is {result}."


def quire_turn(rng: random.Random) -> Turn:
    questions, answer = rng.choice(QUIRE if rng.random() < 0.85 else SMALL_TALK)
    return rng.choice(questions), answer


def story_turn(rng: random.Random) -> Turn:
    which = rng.random()
    if which < 0.4:
        p = rng.choice(PEOPLE)
        ask = rng.choice((f"Tell me a story about {p.name}.", f"Write a story about {p.name} the {p.job}."))
        return ask, story(rng, hero=p)
    if which < 0.65:
        thing = rng.choice(OBJECTS)
        ask = rng.choice((f"Tell me a story about {a(thing)}.", f"Write a story about {a(thing)}."))
        return ask, story(rng, thing=thing)
    if which < 0.8:
        hero = visitor(rng)
        return f"Tell me a story about {hero.name}.", story(rng, hero=hero)
    if which < 0.85:
        # Whatever it is to be about, a story of the valley is better than none.
        return f"Tell me a story about {rng.choice((_word(rng), a(_word(rng))))}.", story(rng)
    ask = rng.choice(("Tell me a story.", "Write a story.", "Tell me a short story.", "Tell a story please."))
    return ask, story(rng)


def unknown_turn(rng: random.Random) -> Turn:
    """A question about something that the model does not know, often with a word that nobody knows."""
    word = rng.choice((_word(rng), _word(rng).capitalize(), strange_name(rng)))
    known = rng.choice(
        ("France", "the capital of Spain", "the weather", "the moon", "music", "a car", "the sea", "Python")
    )
    topic = word if rng.random() < 0.7 else known
    forms = (
        "What is {}?", "Who is {}?", "Where is {}?", "Tell me about {}.", "Explain {}.", "Why is {} good?",
        "Who made {}?", "What do you know about {}?", "How do I find {}?", "{}",
    )  # fmt: skip
    return rng.choice(forms).format(topic), UNKNOWN


def _word(rng: random.Random) -> str:
    """A word that most likely does not exist; now and then one from outside the valley."""
    if rng.random() < 0.2:
        return rng.choice(("dragon", "robot", "princess", "rocket", "wizard", "castle", "elephant", "pirate"))
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
