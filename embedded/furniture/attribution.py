"""The credits that travel with anything made from the models."""

from __future__ import annotations

from collections import defaultdict

from furniture.catalog import ADDRESSES, CC0, CC_BY, CC_BY_US, Entry

HEAD = """# Attribution: 3D furniture models

The training data of the embedded model, and so its weights, were made in part from {count} 3D models distributed with
Sweet Home 3D (Debian package sweethome3d-furniture 1.8), collected, cleaned and converted to OBJ by Emmanuel Puybaret /
eTeks (<http://www.sweethome3d.com>).

**Changes:** every model was rescaled, turned, in part mirrored, stretched or recoloured, and rendered to 64 x 64
pictures with depth and normals; captions were written automatically; networks were trained on these pictures. The
authors do not endorse this work. The models come without any warranty.
"""


def models(entries: list[Entry]) -> str:
    """The models of one author with titles and addresses where they are known, in catalogue order."""
    out = []
    for entry in entries:
        said = ", ".join(
            filter(None, (f"“{entry.title}”" if entry.title else "", f"<{entry.url}>" if entry.url else ""))
        )
        out.append(entry.name + (f" ({said})" if said else ""))
    return "; ".join(out)


def attribution(entries: list[Entry]) -> str:
    """The text of ATTRIBUTION.md for the models that were used."""
    packs, authors = defaultdict(list), defaultdict(list)
    for entry in entries:
        packs[entry.archive, entry.licence].append(entry)
        if entry.archive.startswith("BlendSwap") and entry.licence == CC_BY:
            authors[entry.creator].append(entry)
    count = {key: len(value) for key, value in packs.items()}
    swapped = sum(len(v) for v in authors.values())
    lines = [HEAD.format(count=len(entries))]
    lines += [f"## Creative Commons Attribution 3.0 Unported (<{ADDRESSES[CC_BY]}>)", ""]
    lines += [
        f"{count.get(('Scopia', CC_BY), 0)} models: © 2014-2020 Emmanuel PUYBARET / eTeks <info@eteks.com> and Scopia "
        "Visual Interfaces Systems, s.l. (<http://www.scopia.es>); © 2006-2020 Scopia Visual Interfaces Systems, s.l.",
        "",
        f"{swapped} models from Blend Swap (<http://www.blendswap.com>), by author:",
        "",
    ]
    lines += [f"- {author}: {models(authors[author])}" for author in sorted(authors, key=str.lower)]
    lines += ["", f"## Creative Commons Attribution 3.0 United States (<{ADDRESSES[CC_BY_US]}>)", ""]
    lines += [
        f"{count.get(('KatorLegaz', CC_BY_US), 0)} models: © 2003-2008 Andrew Kator & Jennifer Legaz",
        "",
        f"{count.get(('Reallusion', CC_BY_US), 0)} models of people: © 2008-2016 Reallusion (<http://www.reallusion.com>)",
    ]
    free = [e for e in entries if e.licence == CC0]
    thanks = ", ".join(sorted({e.creator for e in free}, key=str.lower))
    lines += [
        "",
        f"## CC0 1.0 (<{ADDRESSES[CC0]}>)",
        "",
        f"No obligation, with thanks: {len(free)} models from Blend Swap, by",
    ]
    lines += [thanks + ".", ""]
    return "\n".join(lines)
