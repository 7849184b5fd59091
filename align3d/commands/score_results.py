"""`align3d score --results`: folders of results, judged and compared; table and page."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.commands.adapters import NAME
from align3d.commands.inputs import choose_device, read_prompt_list
from align3d.commands.judging import told
from align3d.commands.listed import listed
from align3d.judged.names import some
from align3d.log import count, counting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from align3d.commands.score import Score
    from align3d.judged.marks import Judges
    from align3d.judged.pieces import Method
    from align3d.prompt_lists import PromptList


def run(options: Score) -> None:
    """Check everything, judge what is not there yet, then write table and page."""
    from align3d.judged.marks import Book, judge
    from align3d.judged.pieces import methods, unfinished
    from align3d.rewards.score import check_prompts, known

    given = None if options.prompts is None else read_prompt_list(options.prompts)
    prompts, found = methods(named(options.results), given, options.num_views)
    if given is not None and len(given.prompts) > len(prompts.prompts):
        more = len(given.prompts) - len(prompts.prompts)
        warn(f"{options.prompts} has {count(more, 'prompt')} that came before; each counts once")
    judges = judges_of(options)
    if options.skip_unknown:
        prompts, found = only(known(prompts.prompts, judges.rewards), prompts, found)
    for reward in judges.rewards.values():
        check_prompts(reward, prompts.prompts)
    pieces = [piece for method in found for piece in method.all_pieces]
    shapes = judges.check(pieces)
    if short := unfinished(found):
        warn(f"{count(len(short), 'run')} ended before all updates: {some(short)}")
    with folder(options.out):
        book, scores = Book.open(options.out), {}
        for k, method in enumerate(found):
            own = method.all_pieces
            first = sum(len(before.all_pieces) for before in found[:k])
            tell = counting(f"{method.name} ({k + 1} of {len(found)})", "results")
            scores[method.name] = judge(judges, own, shapes[first : first + len(own)], book, tell)
        write(options, judges, prompts, found, scores, book)


def named(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Method -> folders, of NAME=FOLDER or FOLDER; a name that comes again adds seeds.

    Raises:
        ValueError: If a name will not do, or a folder is given twice.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).resolve().name, text
        if not NAME.fullmatch(name):
            raise ValueError(
                f"a method cannot be called {name!r}; give NAME=FOLDER with letters, digits, spaces and .+-_"
            )
        found.setdefault(name, []).append(Path(path))
    for name, folders in found.items():
        twice = [path for path, number in Counter(path.resolve() for path in folders).items() if number > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice as {name}; drop one, or call it otherwise: OTHER={twice[0]}")
    return found


def only(kept: Sequence[str], prompts: PromptList, found: Sequence[Method]) -> tuple[PromptList, list[Method]]:
    """Some of the prompts, and their results."""
    rows = [i for i, prompt in enumerate(prompts.prompts) if prompt in set(kept)]
    if len(rows) < len(prompts.prompts):
        left = len(prompts.prompts) - len(rows)
        warn(f"{count(left, 'prompt')} of {len(prompts.prompts)} left out, which a reward cannot judge")
    return prompts.only(rows), [replace(one, pieces=tuple(one.pieces[i] for i in rows)) for one in found]


def judges_of(options: Score) -> Judges:
    """Rewards and cameras of the options."""
    from align3d.judged.marks import Judges
    from align3d.judged.pieces import AROUND
    from align3d.rewards.score import as_reward

    asked = listed("reward", [text for texts in options.rewards for text in texts])
    rewards = {label: as_reward(one.part) for label, one in asked.items()}
    about = {
        label: json.loads(json.dumps(told(asked[label].name, reward), default=str)) for label, reward in rewards.items()
    }
    views = options.num_views or AROUND
    return Judges(rewards, about, views, options.size, options.background, options.eps2d, choose_device(options.device))


@contextlib.contextmanager
def folder(out: Path) -> Iterator[None]:
    """Have the folder for this process; one that holds something else is refused.

    Raises:
        FileExistsError: If there are other things in it.
        ValueError: If it cannot be written to, or another process has it.
    """
    from align3d.checkpoint import entries, writable
    from align3d.files import locked
    from align3d.judged.marks import SCORES

    if out.exists() and entries(out) and not (out / SCORES).is_file():
        raise FileExistsError(f"{out} is not empty and holds no scores; choose another --out")
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except BlockingIOError:
            raise ValueError(f"another process is scoring in {out}; wait for it to end") from None
        yield


def write(options: Score, judges: Judges, prompts: PromptList, found: Sequence[Method], scores: Any, book: Any) -> None:
    """table.json, table.md and report.html, and the table on standard output."""
    from align3d.files import atomic_write
    from align3d.intervals import MANY
    from align3d.judged import page
    from align3d.judged.standing import Statistics, as_dict, markdown, standings

    doubt = few(len(prompts.prompts), MANY)
    if doubt:
        warn(doubt)
    how = Statistics(options.seed, options.interval)
    all_of_it = standings(found, scores, prompts, how)
    cameras = {"views": judges.views, "size": judges.size, "background": list(judges.background), "eps2d": judges.eps2d}
    about = {
        "prompts": len(prompts.prompts),
        "methods": {one.name: [str(path) for path in one.folders] for one in found},
        "rewards": judges.about,
        "cameras": cameras,
        "interval": "student's t" if len(prompts.prompts) < MANY else asdict(how),
    }
    rows = list(each_result(found, scores, prompts))
    table = {"settings": about, "results": as_dict(all_of_it), "prompts": rows}
    atomic_write(options.out / "table.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    text = markdown(all_of_it, prompts)
    atomic_write(options.out / "table.md", text)
    pictures = {one.name: [book.picture(judges.shown(own[0])) for own in one.pieces] for one in found}
    written = page.write(options.out / "report.html", all_of_it, pictures, prompts, about, doubt)
    print(text.partition("\n## Prompts")[0].partition("\n## Categories")[0])
    print(f"written: {written}", flush=True)


def few(prompts: int, enough: int) -> str:
    """What is to be thought of intervals over some prompts; nothing if they are enough."""
    if prompts == 1:
        return "1 prompt: there are no intervals, and no difference can be told from chance"
    text = f"{prompts} prompts: with fewer than {enough}, intervals are Student's t, and only large differences show"
    return "" if prompts >= enough else text


def each_result(found: Sequence[Method], scores: Any, prompts: PromptList) -> Iterator[dict[str, Any]]:
    """Every result with the numbers of all its views."""
    categories = prompts.categories or (None,) * len(prompts.prompts)
    for method in found:
        i = 0
        for category, own in zip(categories, method.pieces, strict=True):
            for piece in own:
                views = {label: values[i] for label, values in scores[method.name].items()}
                kind = {} if category is None else {"category": category}
                files = [str(path) for path in piece.files]
                means = {label: sum(values) / len(values) for label, values in views.items()}
                yield {
                    "method": method.name,
                    "prompt": piece.prompt,
                    **kind,
                    "files": files,
                    "rewards": means,
                    "views": views,
                }
                i += 1


def warn(text: str) -> None:
    """A line on standard error."""
    print(f"align3d: warning: {text}", file=sys.stderr, flush=True)
