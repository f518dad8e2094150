"""Stories of the valley, written by a small grammar: each plot keeps its people and things consistent and ends.

`make.py` trains the demo model on them. A story has one paragraph of about 60 to 170 words.
"""

import random
from collections.abc import Callable

from worker.demo.world import OBJECTS, PEOPLE, SEASONS, Person, a, other, pick, town_of, visitor

Plot = Callable[[random.Random, Person, str], list[str]]


def story(rng: random.Random, hero: Person | None = None, thing: str | None = None) -> str:
    """A whole story about `hero`, in which `thing` appears where the plot has one; both are drawn if not given."""
    if hero is None:
        hero = visitor(rng) if rng.random() < 0.45 else pick(rng, PEOPLE)
    if thing is None:
        plot, thing = pick(rng, list(PLOTS.values())), pick(rng, OBJECTS)
    else:
        plot = pick(rng, (_lost, _parcel, _gift))
    return " ".join([opening(rng, hero), *plot(rng, hero, thing)])


def opening(rng: random.Random, hero: Person) -> str:
    town = town_of(hero)
    who = f"{a(hero.job)} named {hero.name}"
    lived = pick(rng, (f"lived in {town.name}, {town.place}", f"lived in {town.name}"))
    if hero not in PEOPLE:
        lived = pick(rng, (f"came to {town.name}", f"stayed in {town.name}, {town.place}"))
    if rng.random() < 0.1:
        return f"{when(rng)}, {hero.name} the {hero.job} was in {town.name}. {_habit(rng, hero)}"
    first = pick(
        rng,
        (
            f"Once upon a time, {who} {lived}.",
            f"{hero.name} was {a(hero.job)} who {lived}.",
            f"Long ago, {who} {lived}.",
            f"There once was {who} who {lived}.",
            f"In {town.name}, {town.place}, there was {who}.",
            f"Once there was {who} who {lived}.",
            f"Once upon a time there was {who} who {lived}.",
            f"Once upon a time, {hero.name} the {hero.job} {lived}.",
            f"The {hero.job} {hero.name} {lived}.",
            f"{hero.name} {lived} and was {a(hero.job)}.",
        ),
    )
    return f"{first} {_habit(rng, hero)}"


def _habit(rng: random.Random, hero: Person) -> str:
    return pick(
        rng,
        (
            f"{hero.name} had {a(hero.pet)} called {hero.pet_name}, and they went everywhere together.",
            f"Every day {hero.he} worked hard, and in the evening {hero.he} ate {hero.food}.",
            f"{hero.his.capitalize()} best friend was {a(hero.pet)} called {hero.pet_name}.",
            f"Everybody in {hero.town} knew {hero.him} and liked {hero.him}.",
        ),
    )


def when(rng: random.Random) -> str:
    part = pick(rng, ("morning", "day", "evening", "afternoon"))
    return pick(rng, (f"One {part}", f"One {pick(rng, SEASONS)} {part}", f"One cold {part}", f"One bright {part}"))


def ending(rng: random.Random, hero: Person, friend: Person | None = None) -> list[str]:
    """The last sentences; after them the text is over."""
    pair = f"{hero.name} and {friend.name}" if friend else f"{hero.name} and {hero.pet_name}"
    meal = pick(
        rng,
        (
            f"That night {pair} ate {hero.food} and laughed.",
            f"Then {pair} sat by the fire and ate {hero.food}.",
            f"{pair} were tired but very happy.",
            f"In the evening {pair} told everybody what had happened.",
        ),
    )
    return [meal, _last(rng, hero)]


def _last(rng: random.Random, hero: Person) -> str:
    return pick(
        rng,
        (
            f"And from that day on, {hero.name} was never alone.",
            "And they were good friends ever after.",
            f"And {hero.name} slept well that night. The end.",
            f"People in {hero.town} still tell this story today.",
            "It was a day that nobody forgot.",
        ),
    )


def _lost(rng: random.Random, hero: Person, thing: str) -> list[str]:
    friend, (first, second, third) = other(rng, hero), rng.sample(town_of(hero).spots, 3)
    finder = pick(rng, (hero.pet_name, friend.name))
    found = f"the {hero.pet}" if finder == hero.pet_name else friend.name
    return [
        f"{when(rng)}, {hero.name} lost {hero.his} {thing}.",
        pick(rng, (f"{hero.he.capitalize()} was very sad.", f"{hero.he.capitalize()} did not know where it was.")),
        f'{hero.name} asked {friend.name} the {friend.job}: "Have you seen my {thing}?"',
        pick(
            rng,
            (
                f'"No," said {friend.name}, "but I will help you."',
                f'"Let us look for it together," said {friend.name}.',
            ),
        ),
        f"First they looked at {first}, but the {thing} was not there.",
        f"Then they looked at {second}, but they found nothing.",
        f"At last {finder} looked behind {third}, and there was the {thing}!",
        pick(
            rng,
            (
                f'"Thank you," said {hero.name} to {found}.',
                f"{hero.name} was so glad that {hero.he} thanked {found} three times.",
            ),
        ),
        *ending(rng, hero, friend),
    ]


def _parcel(rng: random.Random, hero: Person, thing: str) -> list[str]:
    friend = other(rng, hero)
    while friend.town == hero.town:
        friend = other(rng, hero)
    trouble, answer = pick(
        rng,
        (
            ("a thick fog came down", f"{hero.pet_name} the {hero.pet} knew the way and went ahead"),
            ("it began to snow", f"{hero.name} put on a warm coat and walked faster"),
            ("a bridge was broken", f"{hero.name} made a new one from a fallen tree"),
            ("it rained all day", f"{hero.name} slept in a dry barn and went on in the morning"),
        ),
    )
    return [
        f"{when(rng)}, {hero.name} had to bring a {thing} to {friend.name}, the {friend.job} of {friend.town}.",
        f"It was a long way, so {hero.he} left early and took {hero.pet_name} along.",
        f"On the road {trouble}.",
        f'"What shall we do now?" asked {hero.name}.',
        f"But {answer}.",
        f"At last {hero.he} came to {friend.town} and gave {friend.name} the {thing}.",
        pick(
            rng,
            (
                f'"This is just what I needed," said {friend.name}.',
                f'"You are very brave," said {friend.name}, "come in and rest."',
                f'{friend.name} smiled and said: "Stay here tonight."',
            ),
        ),
        *ending(rng, hero, friend),
    ]


def _storm(rng: random.Random, hero: Person, thing: str) -> list[str]:
    friend, spot = other(rng, hero), pick(rng, town_of(hero).spots)
    came = "at once" if friend.town == hero.town else f"from {friend.town}"
    tool, stuff = pick(rng, ("ladder", "hammer", "rope")), pick(rng, ("wood", "nails", "buckets"))
    return [
        f"{when(rng)}, a great storm came over {hero.town}.",
        pick(rng, ("The wind blew and the rain fell all night.", "The sky was black and the wind was strong.")),
        f"In the morning {hero.name} saw that it had damaged {spot}.",
        f'"We must do something," said {hero.name}.',
        f"{friend.name} the {friend.job} came {came} to help.",
        f"{hero.name} brought the {tool}, and {friend.name} brought the {stuff}.",
        f"They worked for {pick(rng, ('two', 'three', 'four'))} days, and even {hero.pet_name} the {hero.pet} helped.",
        pick(rng, (f"Then {spot} looked as good as new.", f"Then everything at {spot} was well again.")),
        *ending(rng, hero, friend),
    ]


def _noise(rng: random.Random, hero: Person, thing: str) -> list[str]:
    friend = other(rng, hero)
    place, source = pick(
        rng,
        (
            ("under the bed", "a small cat that was hungry"),
            ("on the roof", "an owl that had lost its way"),
            ("in the kitchen", "a mouse that was looking for bread"),
            ("behind the door", f"{hero.pet_name} the {hero.pet}, who wanted to come in"),
        ),
    )
    return [
        f"One {pick(rng, ('dark', 'quiet', 'cold'))} night, {hero.name} heard a strange noise {place}.",
        pick(rng, (f'"Who is there?" {hero.he} called.', "It did not stop.")),
        f"{hero.name} was afraid and ran to the house of {friend.name} the {friend.job}.",
        f'"There is something {place}," {hero.he} said.',
        f"{friend.name} took a lantern, and together they went back to look.",
        f"It was only {source}!",
        pick(
            rng, ("They both laughed for a long time.", f"{hero.name} laughed so much that {hero.he} had to sit down.")
        ),
        *ending(rng, hero, friend),
    ]


def _gift(rng: random.Random, hero: Person, thing: str) -> list[str]:
    guest = visitor(rng) if hero in PEOPLE else other(rng, hero)
    mood = pick(rng, ("tired", "hungry", "kind"))
    return [
        f"{when(rng)}, a {mood} {guest.job} named {guest.name} knocked at {hero.his} door.",
        f'"May I rest here?" asked {guest.name}. "I have walked all day."',
        f"{hero.name} gave {guest.him} {hero.food} and a warm bed.",
        f"In the morning {guest.name} said thank you and gave {hero.him} a {thing}.",
        f'"It is old," said {guest.name}, "but it brings good luck."',
        pick(
            rng,
            (
                f"{hero.name} kept the {thing} by the window for many years.",
                f"{hero.name} showed the {thing} to {other(rng, hero).name}, who had never seen one like it.",
                f"{hero.name} and {hero.pet_name} looked at the {thing} every evening.",
            ),
        ),
        *ending(rng, hero, guest if rng.random() < 0.3 else None),
    ]


def _fair(rng: random.Random, hero: Person, thing: str) -> list[str]:
    friend, prize = other(rng, hero), pick(rng, OBJECTS)
    return [
        f"{when(rng)}, there was a fair in {hero.town}, and the prize was a {prize}.",
        f"{hero.name} wanted to bring the best {hero.food} of the valley.",
        f"But {hero.pet_name} the {hero.pet} was hungry and ate it all!",
        pick(
            rng,
            (f"{hero.name} was angry at first, but then {hero.he} laughed.", f'"Oh no," said {hero.name}, "what now?"'),
        ),
        f'{friend.name} the {friend.job} said: "I have {friend.food}. Let us share it."',
        f"So they brought {friend.food} to the fair, and everybody liked it.",
        f"They won the {prize} together and shared the rest of the {friend.food}.",
        f'"You keep it," said {friend.name}, "and I will visit you to look at it."',
        _last(rng, hero),
    ]


PLOTS: dict[str, Plot] = {
    "lost": _lost,
    "parcel": _parcel,
    "storm": _storm,
    "gift": _gift,
    "noise": _noise,
    "fair": _fair,
}
