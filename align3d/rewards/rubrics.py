"""What a vision-language model is asked to mark, from 0 to 10: an object by all its views, or a picture by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

REMARKS = "remarks"
OVERALL = "overall"


@dataclass(frozen=True, eq=False)
class Rubric:
    """Aspects, and how they are asked for."""

    aspects: Mapping[str, str]  # name -> what a 10 means
    role: str  # who is asked, and what is shown
    whole: str  # what the overall mark is of
    shown: str  # what stands before the pictures; {num} is their number

    @property
    def marks(self) -> tuple[str, ...]:
        """The aspects, and the overall mark."""
        return (*self.aspects, OVERALL)

    @property
    def system(self) -> str:
        """What the model is told first."""
        return (
            f"{self.role} Give integers from 0 (worst) to 10 (flawless):\n"
            + "\n".join(f"- {name}: {meaning}" for name, meaning in self.aspects.items())
            + f"\n- {OVERALL}: {self.whole}\n"
            f"First write in `{REMARKS}`, in a sentence or two, what is wrong. Answer with one JSON object with the "
            f"keys {', '.join((REMARKS, *self.marks))}, and nothing else."
        )

    @property
    def schema(self) -> dict[str, Any]:
        """Of the answer."""
        return {
            "type": "object",
            "properties": {
                REMARKS: {"type": "string"},
                **{name: {"type": "integer", "description": "0 to 10"} for name in self.marks},
            },
            "required": [REMARKS, *self.marks],
            "additionalProperties": False,
        }

    def read(self, text: str) -> tuple[dict[str, float], str]:
        """Marks and remarks of an answer: a JSON object, alone or within other words.

        Raises:
            ValueError: If there is none, or a mark is missing or not 0 to 10.
        """
        found = None
        for part in (text, text[text.find("{") : text.rfind("}") + 1]):  # alone, or in a fence or a sentence
            try:
                found = json.loads(part)
            except (ValueError, RecursionError):
                continue
            break
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object" if text else "there is no answer")
        marks = {}
        for name in self.marks:
            mark = found.get(name)
            if not isinstance(mark, (int, float)) or isinstance(mark, bool) or not 0 <= mark <= 10:
                got = "missing" if name not in found else f"{str(mark)[:20]!r}"
                raise ValueError(f"{name} must be a number from 0 to 10, and is {got}")
            marks[name] = float(mark)
        remarks = found.get(REMARKS)
        return marks, remarks if isinstance(remarks, str) else ""


OBJECT = Rubric(
    aspects={
        "alignment": "the object is what the text describes: things, number, colours, materials, relations",
        "geometry": "its shape is whole and plausible: no missing, doubled or floating parts, no holes",
        "texture": "its colours and surface are rich and fit the shape",
        "consistency": "all views show one and the same object: no second face, nothing that changes between views",
        "cleanliness": "no blur, noise, spikes, haze or other artifacts",
    },
    role=(
        "You are a strict judge of 3D objects that were generated from texts. You are shown pictures of one object "
        "from several sides."
    ),
    whole="how good it is in all, as a 3D object for that text",
    shown="The object, {num} views of it:",
)
PICTURE = Rubric(
    aspects={
        "alignment": "the picture shows what the text describes: things, number, colours, places, relations",
        "originality": "it is a convincing idea of the text and not merely its words",
        "quality": "it is sharp, detailed and well lit, and free of artifacts",
        "coherence": "its parts fit together: perspective, anatomy, light",
        "mood": "it has the mood that the text asks for",
    },
    role="You are a strict judge of pictures that were generated from texts. You are shown one picture.",
    whole="how good it is in all, as a picture for that text",
    shown="The picture:",
)
RUBRICS = {"object": OBJECT, "picture": PICTURE}
