"""Words for the models: generic nouns, classes, what to leave out, captions. The table is nouns.tsv."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from furniture.catalog import Entry
from furniture.colours import WORDS

CLASSES = (  # class, words searched in the phrase; the first hit wins
    ("food", r"hot dog|roast chicken|steak$"),
    ("stationery", r"highlighter|pencil$|ruler$|stapler|scissors|calendar|book$|white board|letter tray|tape$"),
    ("desk", r"workbench"),
    ("bed", r"bunk bed"),
    ("pool", r"pool$|hot tub|sandbox"),
    ("instrument", r"piano$|guitar|musical keyboard|xylophone"),
    ("statue", r"statue|fountain|column|snowman|stone lantern"),
    ("toy", r"rocking horse|seesaw|paddle|tennis racket|toy|doll|teddy|puzzle|rubik|chess|swing|slide|"
            r"playhouse|trampoline|ball$|dartboard|pinball|biplane"),
    ("electronics", r"computer|headphones|television|laptop|phone|camera|speaker|stereo|radio|projector|"
                    r"console|controller|printer|player|music|remote|amplifier|detector|intercom|door bell"),
    ("appliance", r"fridge|refrigerator|oven|stove|washing machine|dryer|dishwasher|microwave|hood$|freezer|toaster|"
                  r"blender|mixer|cooktop|coffee machine|heater|fryer|grill|maker|radiator|conditioner|"
                  r"\bfan$|kettle|water cooler"),
    ("picture", r"picture$|framed"),
    ("rack", r"coat hanger|\brack$|holder$|dispenser|hook"),
    ("umbrella", r"umbrella"),
    ("tent", r"tent$|shed|dog house"),
    ("bicycle", r"bicycle|motorcycle|scooter|tricycle|skateboard"),
    ("cart", r"stroller|wheelbarrow|wheelchair"),
    ("fitness", r"gym|treadmill|exercise"),
    ("sofa", r"sofa|couch"),
    ("bed", r"\bbed\b|crib|mattress|hammock|futon"),
    ("lamp", r"lamp|light|lantern|chandelier|candle$|candle holder"),
    ("table", r"table\b(?! computer)"),
    ("desk", r"desk$"),
    ("armchair", r"armchair|bean bag"),
    ("stool", r"stool"),
    ("chair", r"chair|lounger"),
    ("bench", r"bench$"),
    ("bookcase", r"shelf|shelves|bookcase"),
    ("cabinet", r"cabinet|tv stand|wardrobe|cupboard|dresser|chest of|vanity|locker|\bunit$|island|\bsafe$|trunk"),
    ("tree", r"tree|hedge|bush$"),
    ("plant", r"plant|flower|vase of|orchid|cactus|lilies"),
    ("person", r"\bman\b|woman|\bboy|girl|mannequin"),
    ("animal", r"dog$|cat$|horse$|rabbit|chicken$|deer"),
    ("car", r"\bcar$|\bvan$|truck$|\bbus$|forklift"),
    ("toilet", r"toilet$|urinal|bidet|potty"),
    ("sink", r"sink|washbasin|basin$"),
    ("bathtub", r"bathtub|shower cabin"),
    ("window", r"window|blind|curtain|shutter"),
    ("door", r"\bdoors?\b|gate$|elevator"),
    ("stairs", r"stair|escalator|ladder"),
    ("fireplace", r"fireplace|chimney"),
    ("clothes", r"shirt|jacket|trousers|shorts|skirt|dress$|clothes|shoes|sneakers|boots|slippers|loafers|hat$|cap$|"
                r"glove|sock$|helmet|watch|glasses$"),
    ("bag", r"handbag|backpack|briefcase|suitcase|shopping basket"),
    ("food", r"bread$|cake|hamburger|steak|fries|apples|fruit|salad|butter|hot dog|chicken|sushi|yogurt"),
    ("bottle", r"bottle|carton"),
    ("dish", r"ashtray|place setting|cup$|mug|bowl|plate|glass$|teapot|creamer|pot\b|pan$|tray|fork|spoon|knife|knives|"
             r"utensil|spatula|ladle|shaker|french press|jar$"),
    ("vase", r"vase"),
    ("tool", r"hammer|saw$|drill|screwdriver|shovel|grinder|cutter|broom|mower|measure|dustpan|brush$|comb$"),
    ("clock", r"clock"),
    ("bin", r"trash|bin$|waste basket|laundry basket"),
    ("box", r"box|crate|barrel|pallet|container"),
    ("railing", r"railing|fence|goal|barrier"),
    ("rug", r"rug$|mat$|towel"),
    ("rock", r"^rock$|logs"),
)  # fmt: skip
HEADS = (  # words in the phrase -> generic noun of the plainest caption; the first hit wins
    (r"hot dog|workbench|tablet|xylophone|teapot|(sand|mail)box|(planter|flower|gift) box|doll house", ""),
    (r"computer", "computer"),
    (r"sofa|couch", "sofa"),
    (r"armchair", "armchair"),
    (r"wheelchair", "wheelchair"),
    (r"high chair", "high chair"),
    (r"rocking chair", "rocking chair"),
    (r"deck chair|beach chair|lounger", "deck chair"),
    (r"chair", "chair"),
    (r"stool", "stool"),
    (r"exercise bench", "exercise bench"),
    (r"bench$", "bench"),
    (r"bunk bed", "bunk bed"),
    (r"crib|baby bed", "crib"),
    (r"day bed|sofa bed", "bed"),
    (r"mattress", "mattress"),
    (r"\bbed$", "bed"),
    (r"ping pong table|pool table|foosball", ""),
    (r"table lamp|desk lamp|work lamp", "table lamp"),
    (r"floor lamp", "floor lamp"),
    (r"street lamp|lamppost|park lamp", "street lamp"),
    (r"chandelier|hanging light|pendant|ceiling (lamp|light)", "ceiling lamp"),
    (r"stone lantern", ""),
    (r"wall (lamp|light|uplight|lantern)", "wall lamp"),
    (r"lamp$|lantern$|(wall|picture|track|fluorescent) .*lights?$", "lamp"),
    (r"bedside table|nightstand", "bedside table"),
    (r"\btable$|table with|table on|^table", "table"),
    (r"desk$", "desk"),
    (r"bookcase|shelves|bookshelf|^corner shelf|^shelf", "bookcase"),
    (r"wardrobe", "wardrobe"),
    (r"chest of drawers|dresser", "chest of drawers"),
    (r"cupboard|cabinet$|kitchen island", "cabinet"),
    (r"palm tree", "palm tree"),
    (r"pine tree", "pine tree"),
    (r"christmas tree|cypress tree", ""),
    (r"tree$", "tree"),
    (r"cactus", "cactus"),
    (r"flower|tulip|lilies|orchid", "flowers"),
    (r"potted|plant$|vase of|lilies|orchid", "plant"),
    (r"hedge", "hedge"),
    (r"toy car", "toy car"),
    (r"\bcar$", "car"),
    (r"\bbus$", "bus"),
    (r"truck$", "truck"),
    (r"woman", "woman"),
    (r"\bman\b", "man"),
    (r"\bboy\b", "boy"),
    (r"\bgirl\b", "girl"),
    (r"television", "television"),
    (r"fridge|refrigerator", "refrigerator"),
    (r"\boven$", "oven"),
    (r"bathtub", "bathtub"),
    (r"sink|washbasin|basin", "sink"),
    (r"umbrella", "umbrella"),
    (r"\bfan$", "fan"),
    (r"suitcase", "suitcase"),
    (r"trash|waste basket", "trash can"),
    (r"radiator", "radiator"),
    (r"speaker$", "speaker"),
    (r"plate$", "plate"),
    (r"(coffee|plastic) cup|mug|creamer", "cup"),
    (r"drinking glass|beer glass", "glass"),
    (r"(beer|wine) bottle", ""),
    (r"bottle$", "bottle"),
    (r"phone$", "phone"),
    (r"stove$", "stove"),
    (r"piano$", "piano"),
    (r"guitar$", "guitar"),
    (r"coffee m", "coffee machine"),
    (r"camera$", "camera"),
    (r"cat$", "cat"),
    (r"dog$", "dog"),
    (r"rug$|\bmat$", "rug"),
    (r"towel$", "towel"),
    (r"railing|fence", "fence"),
    (r"box$", "box"),
    (r"pot$|pot with", "pot"),
    (r"jar$", "jar"),
    (r"ladder$", "ladder"),
    (r"cabin$", "shower"),
    (r"vanity$", "sink cabinet"),
    (r"clock$", "clock"),
    (r"scooter$", "scooter"),
    (r"tent$", "tent"),
    (r"cap$", "cap"),
    (r"water heater", "water heater"),
    (r"scale$", "scale"),
    (r"knife$", "knife"),
    (r"glasses$", "glasses"),
    (r"mannequin", "mannequin"),
    (r"swimming pool|inflatable pool", "pool"),
)
DROPS = (  # reason, words in the catalogue name
    ("invisible light source", r"light source$"),
    ("flat road marking", r"^arrow |^parking slot|^pedestrian crossing|^rails$|^concrete sidewalk"),
    ("loose flat papers", r"^bill \d|^card game|^newspaper$"),
    (
        "wall plate",
        r"(antenna|dimmer|double switch|rj45|\bswitch|socket|type \w) ?(plug|switch)?$|^service hatch$|^triangle$",
    ),
    ("loose parts", r"^shower$|^shower head|^ring$"),
    ("interior scene", r"^elevator$"),
    ("window or door", r"\bwindow|\bdoors?$|\bdoors? |door frame|blinds?$|shutters?$|curtain|hatch$"),
)
KEEP = r"glass door cabinet|wardrobe|doormat|door bell|kitchen|cabinet"  # ... although they name a door
NO_TINT = re.compile(
    r"snow|phone|oak|teak|wooden|iron|rattan|glass|moka|cone|extinguisher|hydrant|exit|soccer ball|basketball|picture|"
    r"rubik|puzzle|clay|ping pong|pool|cardboard|logs|barrel|dart|pinball|chess|guitar|piano|clock|calendar|aquarium|"
    r"stone|fountain|sandbox|fireplace|xylophone|bookcase full|television|computer|laptop|rock$|column"
)
NO_TINT_CLASSES = {"tree", "plant", "person", "animal", "food", "rock", "fireplace", "statue", "picture"}
WEAK_CLASSES = {"rug", "rack", "railing"}  # flat or hollow at 64 pixels: kept, not `good`
MATERIALS = (
    ("wooden", r"wood|madera|bois|oak|pine\b|teak|walnut|cherry|cerezo|haya|roble|holz|parquet|laminat"),
    ("leather", r"leather|cuir|cuero"),
    ("stone", r"stone|marble|granite|marmol|pierre|concrete|brick"),
    ("wicker", r"rattan|wicker|osier"),
)
PLURALS = re.compile(
    r"^(boots|slippers|loafers|sneakers|shorts|trousers|sunglasses|headphones|shelves|logs|keys|scissors|curtains|"
    r"high heel shoes|clothes on|oil and|french fries|tulips|flowers$|glasses$|kitchen tools|track lights|"
    r"vertical shelves|butter|bread$)"
)


@functools.cache
def table() -> dict[str, str]:
    """Catalogue name (lower case) or object id -> noun phrase, from nouns.tsv."""
    lines = (Path(__file__).parent / "nouns.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if line and not line.startswith("#"))


def phrase(entry: Entry) -> str:
    """What the model is, in a few lower-case words without a brand: "coffee table"."""
    name = entry.name.lower().strip()
    return table().get(entry.id) or table().get(name) or name


def noun(what: str) -> str:
    """The generic noun of a phrase: "table" for "coffee table"."""
    for pattern, head in HEADS:
        if re.search(pattern, what):
            return head or what
    return what


def category(what: str) -> str:
    """The class of a phrase, "other" where none fits."""
    return next((name for name, pattern in CLASSES if re.search(pattern, what)), "other")


def drop_reason(entry: Entry) -> str:
    """Why to leave a model out before looking at it; empty = keep."""
    name = entry.name.lower().strip()
    if table().get(entry.id) == "-" or table().get(name) == "-":
        return "left out by hand"
    for reason, pattern in DROPS:
        if re.search(pattern, name) and not (reason == "window or door" and re.search(KEEP, name)):
            return reason
    return ""


def tintable(what: str) -> bool:
    """Whether another colour makes sense."""
    return category(what) not in NO_TINT_CLASSES and not NO_TINT.search(what)


def material_word(names: Sequence[str]) -> str:
    """The word that the names of the main materials suggest, or nothing."""
    for word, pattern in MATERIALS:
        if any(re.search(pattern, name) for name in names):
            return word
    return ""


def article(words: str, what: str) -> str:
    """With "a" or "an", unless the noun is a plural or a mass."""
    if PLURALS.match(what):
        return words
    return ("an " if re.match(r"[aeio]|u[mn]", words) else "a ") + words


def colour_phrase(colours: Sequence[tuple[str, float]]) -> str:
    """One or two words for the colours: "red", "red and white", "colorful"."""
    if not colours:
        return ""
    if len(colours) == 1 or colours[0][1] >= 0.62 or colours[1][1] < 0.18:
        return colours[0][0]
    if len(colours) > 3 and colours[0][1] < 0.34 and colours[3][1] > 0.12:
        return "colorful"
    return f"{colours[0][0]} and {colours[1][0]}"


def captions(entry: Entry, colours: Sequence[tuple[str, float]], material: str = "") -> list[str]:
    """Three captions: colour and generic noun; colours and phrase; with a material or a second colour.

    Args:
        entry: The model.
        colours: Words with shares, most first; the first is the one to name.
        material: A word like "wooden", or nothing.
    """
    what = phrase(entry)
    plain, main = noun(what), colours[0][0] if colours else ""
    if category(what) == "person" and "mannequin" not in what:
        worn = [c for c, share in colours if c not in ("orange", "beige", "brown", "pink") and share > 0.1] or [main]
        both = " and ".join(worn[:2])
        return [
            f"{article(plain, plain)} in {worn[0]}",
            f"{article(what, what)} in {both}",
            f"{article(what, what)} wearing {both} clothes",
        ]
    told = any(re.search(rf"\b{c}\b", what) for c in WORDS)
    both = "" if told else colour_phrase(colours)
    adjective = "" if told else both if both == "colorful" else main
    first = article(f"{adjective} {plain}".strip(), plain)
    second = article(f"{both} {what}".strip(), what)
    others = [c for c, share in colours[1:3] if share > 0.1 and c != main]
    if material and material[:4] not in what and " and " not in both:
        third = article(f"{adjective} {material} {what}".strip(), what)
    elif others and adjective and both != "colorful":
        third = f"{article(f'{adjective} {what}', what)} with {others[0]} parts"
    else:
        third = f"a 3d model of {article(f'{adjective} {what}'.strip(), what)}"
    return [first, second, third]
