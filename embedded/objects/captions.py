"""Words for objects: three paraphrases each, the plainest first."""

from __future__ import annotations

import numpy as np

NUMBERS = {2: "two", 3: "three", 4: "four"}


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    vowel = words[0] in "aeiou" or words.startswith("hour")
    return f"{'an' if vowel else 'a'} {words}"


def plural(noun: str) -> str:
    """The plural of a noun of the table."""
    if noun in ("fish", "goldfish"):
        return noun
    if noun == "cactus":
        return "cacti"
    if noun.endswith(("box", "bench", "bus", "s", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def part_phrase(color: str, part: str) -> str:
    """A coloured part with its article, if it has one: "a white handle", "brown legs"."""
    words = f"{color} {part}"
    bare = part.endswith("s") or part in ("icing", "dough", "lettuce", "sand", "arms and legs", "lid and handle")
    return words if bare else article(words)


def _finish(rng: np.random.Generator, words: str) -> str:
    """A loose form of the words: no article, or as people ask for a model."""
    bare = words.split(" ", 1)[1] if words.startswith(("a ", "an ")) else words
    forms = (
        bare,
        f"{words}, 3d model",
        f"a 3d model of {words}",
        f"{words} on a white background",
        f"{bare}, 3d render",
    )
    return forms[rng.choice(5, p=(0.4, 0.15, 0.2, 0.1, 0.15))]


def single(rng: np.random.Generator, meta: dict, nouns: tuple[str, ...], wooden: bool) -> list[str]:
    """Three captions of one object.

    Args:
        rng: Chooses among forms.
        meta: The object's noun, color, part, part_color (None where not to be told), size ("" or an adjective) and
            pattern ("" or "striped" or "dotted").
        nouns: Its names.
        wooden: Whether it may be called wooden instead of brown.

    Returns:
        The plain form, a paraphrase, and a loose form, which may leave colours out.
    """
    color, part, part_color, size = meta["color"], meta["part"], meta["part_color"], meta["size"]
    other = nouns[int(rng.integers(len(nouns)))] if len(nouns) > 1 else nouns[0]
    lead = f"{size} " if size else ""
    told = "wooden" if wooden and rng.random() < 0.5 else color
    if meta["pattern"]:
        marks = {"striped": "stripes", "dotted": "dots"}[meta["pattern"]]
        plain = article(f"{lead}{color} {nouns[0]} with {part_color} {marks}")
        second = (
            article(f"{lead}{color} and {part_color} {meta['pattern']} {other}"),
            article(f"{lead}{meta['pattern']} {other} in {color} and {part_color}"),
            article(f"{lead}{meta['pattern']} {color} {other}"),
        )[rng.integers(3)]
        loose = second if rng.random() < 0.5 else plain
        return [plain, second, _finish(rng, loose)]
    plain = article(f"{lead}{color} {nouns[0]}")
    second = article(f"{lead}{told} {other}")
    loose = second
    if part_color:
        tail = part_phrase(part_color, part)
        plain = f"{plain} with {tail}"
        verb = "are" if part.endswith("s") or " and " in part else "is"
        second = (f"{second} and {tail}", f"{second} that has {tail}", f"{second}, its {part} {verb} {part_color}")[
            rng.choice(3, p=(0.3, 0.3, 0.4))
        ]
        loose = f"{loose} with {tail}" if rng.random() < 0.7 else f"{article(lead + other)} with {tail}"
    elif size and rng.random() < 0.5:
        second = (f"{article(f'{told} {other}')}, {size}", f"{article(f'{other}')} that is {size} and {told}")[
            rng.integers(2)
        ]
    elif rng.random() < 0.3:
        second = (f"{article(other)} in {told}", f"{article(other)}, {told}")[rng.integers(2)]
    if not part_color and rng.random() < 0.3:
        loose = article(f"{lead}{other}")
    return [plain, second, _finish(rng, loose)]


def several(rng: np.random.Generator, number: int, color: str, nouns: tuple[str, ...]) -> list[str]:
    """Three captions of a number of equal objects."""
    other = nouns[int(rng.integers(len(nouns)))]
    plain = f"{NUMBERS[number]} {color} {plural(nouns[0])}"
    group = "a pair of" if number == 2 else "a group of three" if number == 3 else "four"
    second = (f"{number} {color} {plural(other)}", f"{group} {color} {plural(other)}")[rng.integers(2)]
    loose = f"{NUMBERS[number]} {plural(other)}" if rng.random() < 0.3 else plain
    return [plain, second, _finish(rng, loose)]


def relation(rng: np.random.Generator, kind: str, first: str, second: str) -> list[str]:
    """Three captions of two things in a relation.

    Args:
        rng: Chooses among forms.
        kind: "on", "beside" or "in".
        first: The upper, left or inner thing, coloured and without article.
        second: The other one.
    """
    a, b = article(first), article(second)
    if kind == "on":
        return [f"{a} on {b}", f"{a} on top of {b}", (f"{b} with {a} on it", f"{first} on {second}")[rng.integers(2)]]
    if kind == "in":
        return [f"{a} in {b}", f"{b} with {a} in it", f"{first} in {second}"]
    return [f"{a} next to {b}", (f"{a} and {b}", f"{b} and {a}")[rng.integers(2)], f"{a} beside {b}"]
