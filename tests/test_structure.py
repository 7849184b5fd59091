"""Rules that hold for the whole package, read off its source."""

import ast
import builtins
import dataclasses
import dis
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import align3d
from align3d import registry
from align3d.commands import COMMANDS, TABLES

PACKAGE = Path(align3d.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MAX_LINES = 420

# A part imports parts of earlier rows and itself. Methods see the contracts and the mathematics, nothing else.
LAYERS = [
    ["types", "rng", "registry", "files", "weights", "gradients"],
    ["diffusion"],
    ["scenes"],
    ["pretrained"],
    ["models"],
    ["priors", "rewards"],
    ["features", "subjects"],
    ["latent_pictures"],
    ["methods"],
    ["peers"],
    ["log", "distributed", "interrupts", "timing", "metrics", "conditions", "intervals"],
    ["state"],
    ["checkpoint", "config", "looks", "embedding", "prompt_rewards", "prompt_pool", "prompt_lists"],
    ["reward_memory"],
    ["trainer"],
    ["loop"],
    ["generate"],
    ["evaluate"],
    ["matched", "sampleset"],
    ["results", "watch"],
    ["page", "runs", "samples", "starts", "film"],
    ["previews"],
    ["charts"],
    ["gallery", "training_charts", "watched"],
    ["report"],
    ["evaluation_report"],
    ["judged"],
    ["recipes"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
ELSEWHERE = {
    "RasterConfig": "scenes/raster",
    "Run": ".",
    "Loop": ".",
    "Distillation": "methods",
    "DDS": "methods",
    "Recon": "methods",
    **dict.fromkeys(("TriPlane", "HashGrid", "March", "Backdrop", "Shading", "NerfOptions"), "scenes/nerf"),
    "Measuring": "commands",
    "Score": "commands",
    "Evaluate": "commands",
    "Compare": "commands",
}  # configurations that are read outside their own file
METHODS_SEE = {"types", "rng", "gradients", "diffusion", "methods"}


def part_of(path: Path) -> str:
    """The part a file belongs to: its folder in the package, or its own name."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """The parts of align3d that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("align3d.")}
    return found - {"__version__", "__file__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    rank = {part: i for i, row in enumerate(LAYERS) for part in row}
    part = part_of(path)
    if part == "__init__":
        assert not imported(TREES[path])
        return
    assert part in rank, f"{part} has no place in LAYERS yet"
    for other in imported(TREES[path]):
        same_row = part == other or (rank[part] == rank[other] == 0)
        assert same_row or rank[other] < rank[part], f"{path.name}: {part} imports {other}"
        assert part != "methods" or other in METHODS_SEE, f"{path.name}: methods must not know {other}"


@pytest.mark.parametrize("kind", [*TABLES, "command"])
def test_every_table_entry_resolves(kind):
    table = COMMANDS if kind == "command" else registry.load({}, TABLES[kind])
    assert table
    for name, path in table.items():
        part = registry.load(table, name, kind)
        assert isinstance(part, type) and dataclasses.is_dataclass(part), path
        assert part.__dataclass_params__.frozen, f"{path} must be frozen"
        assert part.__module__ == path.partition(":")[0], f"{path} only passes through"
        assert part.__doc__ and not part.__doc__.startswith(f"{part.__name__}("), f"{path} needs a docstring"


def configurations(tree: ast.Module, listed: set[str]) -> dict[str, set[str]]:
    """Class -> fields of a file's dataclasses that configure something: all have defaults, or a table lists them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            lines = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            lines = [item for item in lines if not ast.unparse(item.annotation).startswith("ClassVar")]
            if node.name in listed or all(item.value is not None for item in lines):
                found[node.name] = {item.target.id for item in lines}
    return found


def names_read(node: ast.AST) -> set[str]:
    """Every x of some `.x` that is read, outside __post_init__: checking a value is not using it."""
    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
        return set()
    own = {node.attr} if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) else set()
    return own.union(*map(names_read, ast.iter_child_nodes(node)))


def read_by(path: Path, name: str) -> set[str]:
    """Every x of some `.x` that the class's file reads, or the files below its folder in ELSEWHERE."""
    folder = PACKAGE / ELSEWHERE[name] if name in ELSEWHERE else None
    files = [p for p in FILES if p == path or (folder and p.is_relative_to(folder))]
    return set().union(*(names_read(TREES[p]) for p in files))


def test_no_configuration_field_goes_unread():
    """A knob that nobody reads is a lie. It is read in the file it stands in, or in the folder that ELSEWHERE names."""
    listed = {path.partition(":")[2] for path in option_classes()}
    unread = [
        f"{path.relative_to(PACKAGE)}: {name}.{field}"
        for path, tree in TREES.items()
        for name, fields in configurations(tree, listed).items()
        for field in sorted(fields - read_by(path, name))
    ]
    assert not unread, unread


def test_the_field_test_can_fail():
    source = """
@dataclass(frozen=True)
class A:
    x: int = 1
    y: ClassVar[int] = 2
    z: int = 3
    def __post_init__(self):
        assert self.x
    def f(self):
        return self.z
"""
    tree = ast.parse(source)
    assert configurations(tree, set()) == {"A": {"x", "z"}}
    assert configurations(ast.parse("@dataclass\nclass A:\n    x: int"), set()) == {}
    assert "x" not in names_read(tree) and "z" in names_read(tree)


def defined(body: list[ast.stmt]) -> set[str]:
    """Names that the statements of a module bind when it runs; what stands under TYPE_CHECKING is for types alone."""
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
        elif isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            found.add(statement.name)
        else:
            found |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def unbound(source: str) -> set[str]:
    """Names that functions of a module look for in it, and that are not there. The linter cannot tell: axes of shapes
    look the same to it."""
    known = defined(ast.parse(source).body) | set(dir(builtins)) | {"__file__", "__name__"}
    codes, found = [compile(source, "x", "exec")], set()
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if hasattr(const, "co_code")]
        found |= {str(i.argval) for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return found - known


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_name_is_bound(path):
    assert unbound(path.read_text(encoding="utf-8")) == set()


def test_the_test_of_names_can_fail():
    source = "if TYPE_CHECKING:\n    from x import Y\ndef f(a: Y):\n    def g():\n        return Y(a, B)\n    return g"
    assert unbound("from __future__ import annotations\n" + source) == {"Y", "B"}
    assert unbound("import a.b as c\nwith c as d:\n    e = 1\ndef f():\n    return c, d, e, len, f, __file__") == set()


def option_classes() -> set[str]:
    """The path of every dataclass whose fields become flags."""
    paths = {path for kind in TABLES for path in registry.load({}, TABLES[kind]).values()}
    groups = [registry.load(COMMANDS, name).__dict__.get("groups", {}) for name in COMMANDS]
    return paths | set(COMMANDS.values()) | {path for group in groups for path in group.values()}


def test_every_option_says_what_it_does():
    """Each field has a comment on its line or a docstring below; it becomes the help text of a flag."""
    silent = []
    for path in option_classes():
        part = registry.load({}, path)
        files = [Path(sys.modules[base.__module__].__file__) for base in part.__mro__[:-1]]
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        for field in dataclasses.fields(part):
            declared = [i for i, line in enumerate(lines) if re.match(rf"    {field.name}: ", line)]
            if not any("#" in lines[i] or '"""' in lines[i + 1] for i in declared):
                silent.append(f"{path}.{field.name}")
    assert not silent


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_introduce_themselves(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert ast.get_docstring(TREES[path]), "what is this file?"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_forbidden_calls(path):
    """No pickle, no code from files, no device by method, no shell, no global randomness of numpy."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "shelve", "marshal"}
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f"line {node.lineno}: {call}"
        assert not call.endswith(".cuda"), where
        assert call not in ("eval", "exec", "os.system"), where
        assert not re.match(r"(np|numpy)\.random\.(seed|rand|randn|normal|uniform)$", call), where
        assert call != "torch.load" or keywords.get("weights_only") == "True", where
        assert keywords.get("shell") != "True", where
        assert keywords.get("allow_pickle") != "True", where


ENVIRONMENT = {
    "cli.py": "the border to the outside",
    "scenes/raster/compile.py": "where the user's cache folder is",
    "rewards/endpoint.py": "address and key of an endpoint: a key belongs there and nowhere else",
}


def test_the_environment_is_read_at_the_border_only():
    readers = {
        str(path.relative_to(PACKAGE))
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert readers <= set(ENVIRONMENT)


def start(*args: str) -> str:
    """Output of a new Python."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


SHOW_TORCH = "import sys; print('torch' in sys.modules or 'numpy' in sys.modules)"


@pytest.mark.parametrize(
    "program",
    [
        "import align3d",
        "from align3d.cli import main; main(['--help'])",
        "from align3d.cli import main; main(['train', '--help'])",
        "from align3d.cli import main; main(['train', '--reward', 'imagenet', '--help'])",
        "from align3d.cli import main; main(['sample', '--help'])",
        "from align3d.cli import main; main(['list', 'models'])",
    ],
)
def test_starting_needs_no_torch(program):
    """So that it takes less than half a second, which a test cannot time on a busy machine."""
    output = start("-c", f"{program}\n{SHOW_TORCH}")
    assert output.splitlines()[-1] == "False", "torch or numpy was imported"


def test_no_torch_at_the_top_of_option_modules():
    """Modules whose dataclasses become flags are imported for --help; their own tops must stay light."""
    for module in {path.partition(":")[0] for path in option_classes()}:
        tree = TREES[Path(importlib.import_module(module).__file__)]
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] in ("torch", "numpy") for alias in node.names), module
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in ("torch", "numpy", "jaxtyping"), module


def test_assets_are_in_the_package():
    """What is in align3d/assets and not Python is package data."""
    import tomllib

    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["align3d"]
    covered = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    ignored = {".py", ".pyc", ".so", ".lock"}
    loose = [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in ignored and p not in covered]
    assert not loose
