"""Which prompt a file or folder belongs to, by its name.

Names of several programs are known: the evaluation scripts of RewardSDS (`a_red_car0.png`: blanks and /:, as _, then
the view, nothing between), the folders of its generate.py (`a_red_car`, small letters, no punctuation), those of
threestudio (`A_red_car@20250101-120000`), the prompt as it is, and numbers: places in the list, or the ids of COCO.
They are one rule: letters and digits count, whatever is between them, and a number at the end may be the view.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align3d.log import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from align3d.prompt_lists import PromptList

MOST = 3  # names in an error
NUMBER = re.compile(r"(\d+)(?:[-_ ](\d+))?")
WHEN = re.compile(r"@\d{8}-\d{6}$")  # of a trial of threestudio

Place = tuple[int, int | None]  # a prompt, and a view; None where the name has none


def some(names: Sequence[object], what: str = "the first ") -> str:
    """The first names of a list, for an error."""
    shown = ", ".join(str(name) for name in names[:MOST])
    return shown if len(names) <= MOST else f"{what}{shown}"


def key(text: str) -> str:
    """Letters and digits of a text, small, with _ for whatever is between them."""
    return "_".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def literal(prompt: str) -> str:
    """A prompt as the evaluation scripts of RewardSDS write it."""
    return re.sub("[ /:,]", "_", prompt)


@dataclass
class Assigned:
    """The names of a folder, by prompt and view, and what is wrong with them."""

    places: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # prompt -> view -> name
    unclear: list[str] = field(default_factory=list)  # what they could be, in words
    foreign: list[str] = field(default_factory=list)

    def put(self, name: str, place: Place) -> None:
        """Take a name's place; two in one are unclear."""
        prompt, view = place[0], place[1] or 0
        taken = self.places[prompt].setdefault(view, name)
        if taken != name:
            self.unclear.append(f"{taken} and {name} are the same view of the same prompt")

    def views(self, wanted: int, prompts: int) -> int:
        """How many views a prompt has, counted from 0 afterwards.

        Args:
            wanted: So many; 0: the number with which the least is missing and superfluous.
            prompts: Their number.
        """
        views = [view for found in self.places.values() for view in found]
        if views and 0 not in views and (wanted or max(views)) in views:  # they are counted from 1
            self.places = {p: {view - 1: name for view, name in found.items()} for p, found in self.places.items()}
            views = [view - 1 for view in views]

        def wrong(num: int) -> int:
            right = sum(view < num for view in views)
            return prompts * num - right + len(views) - right

        return wanted or min({1, *(view + 1 for view in views)}, key=lambda num: (wrong(num), -num))


def assign(names: Mapping[str, str], prompts: PromptList, views: int, where: str, what: str) -> list[list[str]]:
    """The name of each view of each prompt.

    Args:
        names: File or folder -> its name without what is not of the prompt, such as a suffix.
        prompts: Each once.
        views: That a prompt must have; 0: as many as there seem to be.
        where: They are, for errors.
        what: They are, for errors: picture or folder.

    Raises:
        ValueError: If something is missing, superfluous, unclear or twice there; one line for all of it.
    """
    found = Assigned()
    numbered = all(NUMBER.fullmatch(name) for name in names.values())
    if numbered:
        places = _by_number(names, prompts)
    else:
        keys = _keys(prompts)
        places = {n: _by_name(name, prompts, keys) for n, name in names.items()}
    for name, all_of_it in places.items():
        if not all_of_it:
            found.foreign.append(name)
        elif len(all_of_it) > 1:
            own = " or ".join(_told(place, prompts) for place in sorted(all_of_it, key=str)[:2])
            found.unclear.append(f"{name} may be {own}")
        else:
            found.put(name, next(iter(all_of_it)))
    num = found.views(views, len(prompts.prompts))
    missing = [(p, v) for p in range(len(prompts.prompts)) for v in range(num) if v not in found.places.get(p, {})]
    found.foreign += [name for held in found.places.values() for v, name in sorted(held.items()) if v >= num]
    wrong = list(_wrong(found, missing, prompts, num, what, len(names)))
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}")
    return [[found.places[p][v] for v in range(num)] for p in range(len(prompts.prompts))]


def _wrong(
    found: Assigned, missing: Sequence[tuple[int, int]], prompts: PromptList, num: int, what: str, there: int
) -> Iterator[str]:
    """What is wrong, in words."""
    total = len(prompts.prompts) * num
    if missing:
        each = f" ({count(num, 'view')} of {count(len(prompts.prompts), 'prompt')})" if num > 1 else ""
        first = some([_told((p, v if num > 1 else None), prompts) for p, v in missing])
        yield f"{len(missing)} of {count(total, what)}{each} {'is' if len(missing) == 1 else 'are'} missing: {first}"
    if found.unclear:
        yield f"{count(len(found.unclear), what)} could be several things: {some(found.unclear)}"
    if found.foreign:
        more = "" if len(found.foreign) < there else "; are these the prompts?"
        own = "belongs to no prompt or view" if len(found.foreign) == 1 else "belong to no prompt or view"
        yield f"{count(len(found.foreign), what)} {own}: {some(found.foreign)}{more}"


def _told(place: Place, prompts: PromptList) -> str:
    prompt, view = place
    return repr(prompts.prompts[prompt]) + ("" if view is None else f" view {view}")


def _by_name(name: str, prompts: PromptList, keys: Mapping[str, Sequence[int]]) -> set[Place]:
    """The places that a name may mean; if it is exactly one prompt's by the evaluation scripts' rule, that."""
    own = WHEN.sub("", name)
    whole = key(own)
    found: set[Place] = {(p, None) for p in keys.get(whole, ())}
    digits = len(whole) - len(whole.rstrip("0123456789"))
    for tail in range(1, digits + 1):
        found |= {(p, int(whole[-tail:])) for p in keys.get(whole[:-tail].rstrip("_"), ())}
    if not found and (match := re.match(r"\d+[-_ ]+", own)):  # a number before the prompt
        return _by_name(own[match.end() :], prompts, keys)
    exact = {(p, v) for p, v in found if literal(prompts.prompts[p]) + ("" if v is None else str(v)) == own}
    return exact if len(found) > 1 and len(exact) == 1 else found


def _keys(prompts: PromptList) -> dict[str, list[int]]:
    """Prompts by their keys."""
    found: dict[str, list[int]] = defaultdict(list)
    for p, prompt in enumerate(prompts.prompts):
        found[key(prompt)].append(p)
    return found


def _by_number(names: Mapping[str, str], prompts: PromptList) -> dict[str, set[Place]]:
    """The places of names that are numbers: of the list, or the list's own."""
    parts = {n: NUMBER.fullmatch(name).groups() for n, name in names.items()}
    heads = {n: (int(head), None if view is None else int(view)) for n, (head, view) in parts.items()}
    P, seen = len(prompts.prompts), {head for head, _ in heads.values()}
    first = 1 if P in seen and 0 not in seen else 0
    of_place = {n: {(head - first, view)} if 0 <= head - first < P else set() for n, (head, view) in heads.items()}
    if prompts.ids is None:
        return of_place
    known: dict[int, set[int]] = defaultdict(set)
    for p, ids in enumerate(prompts.ids):
        for number in ids:
            known[number].add(p)
    of_id = {n: {(p, view) for p in known.get(head, ())} for n, (head, view) in heads.items()}
    if not all(of_id.values()):
        return of_place
    return {n: of_id[n] | of_place[n] for n in heads} if all(of_place.values()) else of_id
