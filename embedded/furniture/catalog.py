"""The five model archives of Debian's sweethome3d-furniture: entries, licences and author notices, read safely."""

from __future__ import annotations

import html
import posixpath
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MAX_MEMBER = 64 << 20  # bytes of one unpacked file
MAX_TOTAL = 2 << 30  # bytes of one unpacked archive

CC_BY, CC_BY_US, CC0 = "CC-BY-3.0", "CC-BY-3.0-US", "CC0-1.0"
LICENCES = {  # archive -> licence of its models, as its LICENSE.TXT says
    "BlendSwap-CC-0": CC0,
    "BlendSwap-CC-BY": CC_BY,
    "KatorLegaz": CC_BY_US,
    "Reallusion": CC_BY_US,
    "Scopia": CC_BY,
}
ADDRESSES = {
    CC_BY: "http://creativecommons.org/licenses/by/3.0/",
    CC_BY_US: "http://creativecommons.org/licenses/by/3.0/us/",
    CC0: "http://creativecommons.org/publicdomain/zero/1.0/",
}


@dataclass(frozen=True)
class Entry:
    """One model of a catalogue."""

    id: str  # "Scopia/steak"
    archive: str
    name: str
    category: str
    tags: tuple[str, ...]
    creator: str
    licence: str
    model: str  # path of the OBJ file in the archive
    size: tuple[float, float, float]  # width, height, depth in cm; 0 = not given
    rotation: tuple[float, ...]  # 9 numbers, row-major, or empty
    title: str = ""  # the author's own title, from the notice beside the model
    url: str = ""


@dataclass
class Archive:
    """A model archive (a zip file): checked when opened, read one file at a time."""

    path: Path
    files: dict[str, zipfile.ZipInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.zip = zipfile.ZipFile(self.path)
        total = 0
        for info in self.zip.infolist():
            name = info.filename
            if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{self.path.name}: unsafe path {name!r} in the archive; refusing to read it")
            total += info.file_size
            if info.file_size > MAX_MEMBER or total > MAX_TOTAL:
                raise ValueError(f"{self.path.name}: {name!r} unpacks to more than is allowed; refusing to read it")
            if not info.is_dir():
                self.files[name] = info
        self.lower = {name.lower(): name for name in self.files}

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            FileNotFoundError: If the archive does not have it.
        """
        if name not in self.files:
            raise FileNotFoundError(f"{self.path.name} has no {name!r}")
        with self.zip.open(self.files[name]) as stream:
            return stream.read(MAX_MEMBER)  # a lying header cannot make it unpack more

    def find(self, folder: str, name: str) -> str | None:
        """The file that a model in `folder` means by `name`: as written, else by its last part, whatever the case."""
        name = name.replace("\\", "/")
        for candidate in (posixpath.join(folder, name), posixpath.join(folder, posixpath.basename(name))):
            found = self.lower.get(posixpath.normpath(candidate).lower())
            if found:
                return found
        return None

    def beside(self, folder: str) -> list[str]:
        """All files directly in `folder`."""
        return [name for name in self.files if posixpath.dirname(name) == folder]


def properties(text: str) -> dict[str, str]:
    """Keys and values of a Java properties file."""
    out = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key[:1] not in "#!":
            out[key.strip()] = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), value.strip())
    return out


def notice(archive: Archive, folder: str) -> dict[str, str]:
    """Title, address and licence of the Blend Swap notice beside a model; empty where there is none."""
    out = {"title": "", "url": "", "licence": ""}
    for name in sorted(archive.beside(folder)):
        if not name.lower().endswith((".html", ".txt")):
            continue
        text = archive.read(name).decode("utf-8", "replace")
        url = re.search(r"https?://(?:www\.)?blendswap\.com/blends?/[^\s\"<]*", text)
        title = re.search(r'downloading "(.+?)" by |<title>(?:\d+ - )?(.+?) (?:by|-) ', text)
        out["url"] = url[0] if url else out["url"]
        out["title"] = html.unescape(next(filter(None, title.groups()))).strip() if title else out["title"]
        address = re.search(r"creativecommons\.org/((?:licenses|publicdomain)/[a-z-]+)", text)
        line = re.search(r"Released under\s*([^<\n]{1,80})", text)
        out["licence"] = address[1] if address else line[1].strip() if line else out["licence"]
    return out


def entries(archive: Archive) -> list[Entry]:
    """Every model of one archive that is under a licence we know, in catalogue order.

    Raises:
        ValueError: If the archive is none of the five, or has no catalogue.
    """
    library = archive.path.stem
    if library not in LICENCES:
        raise ValueError(f"{archive.path.name} is not one of {', '.join(LICENCES)}: its licence is not known")
    try:
        table = properties(archive.read("PluginFurnitureCatalog.properties").decode("latin-1"))
    except FileNotFoundError as error:
        raise ValueError(f"{archive.path.name} has no catalogue: not a furniture library") from error
    out = []
    for n in range(1, 1 + sum(key.startswith("name#") for key in table)):
        get = {key: table.get(f"{key}#{n}", "") for key in KEYS}
        model = get["model"].lstrip("/")
        if not get["name"] or model not in archive.files:
            continue
        said = notice(archive, posixpath.dirname(model)) if library.startswith("BlendSwap") else {}
        licence = LICENCES[library]
        terms = said.get("licence", "").lower()
        if licence == CC0 and ("attribution" in terms or "licenses/by" in terms):
            licence = CC_BY  # the notice beside the model is stricter than the pack
        if re.search(r"share|non.?commercial|no.?deriv|by-(nc|sa|nd)", terms):
            continue
        out.append(
            Entry(
                id=f"{library}/{get['id'].partition('#')[2] or n}",
                archive=library,
                name=get["name"],
                category=get["category"].lower(),
                tags=tuple(tag.strip() for tag in get["tags"].split(",") if tag.strip()),
                creator=get["creator"],
                licence=licence,
                model=model,
                size=tuple(number(get[key]) for key in ("width", "height", "depth")),
                rotation=rotation(get["modelRotation"]),
                title=said.get("title", ""),
                url=said.get("url", ""),
            )
        )
    return out


KEYS = ("id", "name", "category", "tags", "creator", "model", "width", "height", "depth", "modelRotation")


def number(text: str) -> float:
    """A non-negative number, 0 where the text is none."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def rotation(text: str) -> tuple[float, ...]:
    """Nine numbers of a rotation matrix, or nothing."""
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        return ()
    return values if len(values) == 9 else ()


def open_all(source: Path) -> dict[str, Archive]:
    """The archives found in a folder, by name.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = {name: source / f"{name}.sh3f" for name in LICENCES}
    archives = {name: Archive(path) for name, path in found.items() if path.is_file()}
    if not archives:
        raise FileNotFoundError(
            f"no furniture archive (*.sh3f) in {source}; install Debian's sweethome3d-furniture or give --source"
        )
    return archives
