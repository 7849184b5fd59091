"""Looks at the model between updates, as the loop takes them: in the first process, while the others wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from align3d.types import BaseModel, Subject


@runtime_checkable
class Watcher(Protocol):
    """Who looks, such as watch.Watching; takes nothing from the training's randomness and changes no weights."""

    def begin(self, model: BaseModel | Subject) -> None:
        """Called before the first look of every start, and before the first update."""
        ...

    def due(self, done: int, last: int) -> bool:
        """Whether to look after `done` updates of `last`."""
        ...

    def look(self, done: int, model: BaseModel | Subject) -> dict[str, Any]:
        """What was seen, as columns for the row of the update."""
        ...

    def stops(self, row: Mapping[str, Any]) -> Any:
        """Whether, or why, the run ends with this row."""
        ...


@dataclass(frozen=True)
class Looks:
    """A watcher, if there is one, at its work in one run."""

    watcher: Watcher | None
    model: BaseModel | Subject
    last: int  # updates of the run

    def begin(self) -> None:
        """Get ready; again does no harm."""
        from align3d import distributed

        if self.watcher is not None:
            distributed.on_first(lambda: self.watcher.begin(self.model))

    def add(self, row: dict[str, Any], last: bool) -> bool:
        """Look if it is time to, and put what was seen into an update's row; whether the run ends with it.

        Args:
            row: Of an update.
            last: Whether the run ends with it anyway, before it has done all its updates.
        """
        from align3d import distributed

        done = row["step"]
        if self.watcher is None or not self.watcher.due(done, done if last else self.last):
            return False
        row |= distributed.on_first(lambda: self.watcher.look(done, self.model)) or {}
        return self.over([row])

    def over(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the first process, which alone has what was seen, finds that the run ended with the last row."""
        from align3d import distributed

        if self.watcher is None:
            return False
        return bool(distributed.largest(int(bool(rows and self.watcher.stops(rows[-1])))))
