"""Conditions on what is watched: how they are written, and when they hold."""

import itertools
import math
import random

import pytest

from align3d.conditions import Base, Condition, met, parse
from align3d.watch import Watch

NAMES = [
    "fid",
    "hpsv2.1",
    "clip-tiny",
    "my.mod:red",
    "base",
    "or",
    "Watch",
    "watch.",
    "watch.red",
    "se",
    "2sd",
    "größe",
]
NUMBERS = [0.0, 1.0, 40.0, 0.05, 1 / 3, 1e-30, 6.02e23, 123456789.0, 2.5]
BASE = Base({"dnc": 0.8, "diversity": 0.2, "fid": 30.0}, {"dnc": 0.02})
LOOK = {"dnc": 0.75, "dnc_error": 0.005, "fid": 38.0, "fid_error": 1.0, "diversity": 0.1}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ()),
        (" \n", ()),
        ("fid > 40", (Condition("fid", ">", 40.0),)),
        ("fid>40", (Condition("fid", ">", 40.0),)),
        ("fid>=40 or  dnc<.8", (Condition("fid", ">=", 40.0), Condition("dnc", "<", 0.8))),
        ("my.mod:red <= -1e-3", (Condition("my.mod:red", "<=", -1e-3),)),
        ("watch.imagenet < base - 2sd", (Condition("imagenet", "<", -2.0, "sd"),)),
        ("dnc<base-3se OR FID > BASE + 1E1", (Condition("dnc", "<", -3.0, "se"), Condition("FID", ">", 10.0, "base"))),
        ("dnc  <  base\n-  .05", (Condition("dnc", "<", -0.05, "base"),)),
        ("dnc\u00a0<\u00a0Base\u00a0-\u00a02\u00a0SD", (Condition("dnc", "<", -2.0, "sd"),)),
        ("diversity <= base", (Condition("diversity", "<=", 0.0, "base"),)),
        ("base < base+1e-2se", (Condition("base", "<", 0.01, "se"),)),
        ("or < 1 or or > 2", (Condition("or", "<", 1.0), Condition("or", ">", 2.0))),
    ],
)
def test_conditions_are_read(text, wanted):
    assert parse(text) == wanted


def test_any_condition_is_read_as_it_is_told():
    units, signs = ("", "base", "sd", "se"), (1, -1)
    every = [
        Condition(*parts, sign * number, unit)
        for *parts, number, sign, unit in itertools.product(NAMES, ("<", "<=", ">", ">="), NUMBERS, signs, units)
    ]
    for condition in every:
        assert parse(str(condition)) == (condition,)
    random.Random(0).shuffle(every)
    for i in range(0, len(every), 5):
        assert parse(" or ".join(map(str, every[i : i + 5]))) == tuple(every[i : i + 5])


def test_blanks_and_case_do_not_matter():
    draw = random.Random(1)
    for _ in range(500):
        name, op, number = draw.choice(NAMES[:4]), draw.choice(["<", "<=", ">", ">="]), draw.choice(NUMBERS)
        sign, unit = draw.choice("+-"), draw.choice(["", "sd", "se"])
        words = [draw.choice(["", "watch.", "WATCH."]) + name, op, "base", sign, f"{number!r}", unit]
        text = "".join(word + draw.choice(["", " ", "   ", "\t"]) for word in words[:1])
        text += "".join(draw.choice([str.lower, str.upper])(word) + draw.choice(["", " ", "  "]) for word in words[1:])
        wanted = Condition(name, op, math.copysign(number, float(f"{sign}1")), unit or "base")
        assert parse(draw.choice(["", " "]) + text) == (wanted,), text


BAD = ["nan", "inf", "-inf", "1e999", "many", "", "0,8", "2sd", "5%", "4 and dnc < 1", "= 4", "3 < 4", "\u22122", "4,"]
BAD += [
    "basement",
    "base2sd",
    "base -",
    "base - sd",
    "base - 2 sds",
    "base - 2 s d",
    "base - 2 sd se",
    "base - -2",
    "base + inf",
    "base - nan sd",
    "base - 1e999 sd",
    "base * 2",
    "2 + base",
    "base - 2sd - 1",
    "base - 2 \u017fd",
]


@pytest.mark.parametrize("limit", BAD)
def test_bad_limits_are_refused(limit):
    with pytest.raises(ValueError, match=r"stop-when must be NAME < LIMIT.*as in base - 2sd; got 'fid >"):
        Watch(stop_when=f"dnc < 1 or fid > {limit}")


@pytest.mark.parametrize(
    "text", ["fid", "fid > 4 or", "or fid > 4", "fid == 4", "fid != 4", "fid =< 4", "a fid < 4", "<1"]
)
def test_bad_conditions_are_refused(text):
    with pytest.raises(ValueError, match=r"stop-when must be NAME < LIMIT.*got '") as error:
        Watch(stop_when=text)
    assert "\n" not in str(error.value)


def test_no_text_does_anything_but_be_read_or_refused():
    draw, words = (
        random.Random(2),
        ["fid", "base", "-", "+", "2", "sd", "se", " ", "<", ">", "=", "or", ".", "e", "watch."],
    )
    read = 0
    for _ in range(20000):
        text = "".join(draw.choices(words, k=draw.randint(1, 9)))
        try:
            found = parse(text)
        except ValueError as error:
            assert str(error).startswith("stop-when must be")
        else:
            read += bool(found)
            assert parse(" or ".join(map(str, found))) == found, text
    assert read > 100


@pytest.mark.parametrize(
    ("text", "limit", "holds"),
    [
        ("dnc < 0.75", 0.75, False),
        ("dnc <= 0.75", 0.75, True),
        ("fid > 37.5", 37.5, True),
        ("dnc < base", 0.8, True),
        ("dnc < base - 0.04", 0.76, True),
        ("dnc < base - 0.06", 0.74, False),
        ("dnc < base - 2sd", 0.76, True),
        ("dnc < base - 3sd", 0.74, False),
        ("dnc < base - 9se", 0.755, True),
        ("dnc < base - 11se", 0.745, False),
        ("dnc > base + 1sd", 0.82, False),
        ("fid > base + 7", 37.0, True),
        ("fid > base + 9se", 39.0, False),
        ("diversity < base - 0.09", 0.11, True),
    ],
)
def test_conditions_hold_or_not(text, limit, holds):
    (condition,) = parse(text)
    assert condition.limit_at(LOOK, BASE) == pytest.approx(limit) and condition.holds(LOOK, BASE) is holds
    found = met((condition,), LOOK, BASE)
    assert (found is not None) is holds and (found is None or found.limit == condition.limit_at(LOOK, BASE))


def test_the_first_that_holds_is_told_with_its_limit():
    found = met(parse("dnc < 0.5 or dnc < base - 2 sd or fid > 31"), LOOK, BASE)
    assert (found.name, str(found)) == ("dnc", "dnc < base - 2 sd (0.76)")
    assert str(met(parse("fid > 31"), LOOK, BASE)) == "fid > 31"
    assert met(parse("fid > 50"), LOOK, BASE) is None and met((), LOOK, BASE) is None


def test_what_a_limit_is_relative_to_must_be_there():
    for text, numbers, message in [
        ("diversity < base - 2se", LOOK, "'diversity < base - 2 se', but diversity has no se at this look, None"),
        ("dnc < base - 2se", LOOK | {"dnc_error": math.nan}, "dnc has no se at this look, nan"),
        ("fid < base - 2sd", LOOK, "fid has no sd"),
        ("new < base", {"new": 1.0}, "new has no number of the base model"),
    ]:
        with pytest.raises(ValueError, match=message):
            met(parse(text), numbers, BASE)
        assert met(parse(text), {}, BASE) is None, "no look, no number"
