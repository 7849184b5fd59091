"""Conditions on what is watched: how they are written, and when they hold."""

import pytest

from align3d.conditions import Condition, parse
from align3d.watch import Watch


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ()),
        ("fid > 40", (Condition("fid", ">", 40.0),)),
        ("fid>=40 or  dnc<.8", (Condition("fid", ">=", 40.0), Condition("dnc", "<", 0.8))),
        ("my.mod:red <= -1e-3", (Condition("my.mod:red", "<=", -1e-3),)),
    ],
)
def test_conditions_are_read(text, wanted):
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fid", "NAME < NUMBER.*got 'fid'"),
        ("fid > 4 or", "got 'fid > 4 or'"),
        ("fid > 4 and dnc < 1", "got 'fid > 4 and dnc < 1'"),
        ("fid == 4", "finite number, got|NAME < NUMBER"),
        ("fid > nan", "finite number, got 'fid > nan'"),
        ("fid > inf", "finite number"),
        ("fid > many", "finite number"),
    ],
)
def test_bad_conditions_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Watch(stop_when=text)


def test_conditions_hold_or_not():
    below, above = Condition("a", "<", 1.0), Condition("a", ">=", 1.0)
    assert below.holds({"a": 0.5}) and not below.holds({"a": 1.0}) and not below.holds({"b": 0.0})
    assert above.holds({"a": 1.0}) and not above.holds({"a": 0.9})
