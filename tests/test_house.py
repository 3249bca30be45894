"""The house's own rules: imports point down, nothing heavy at start, every module has a title."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qexport"
# Lowest first. A module may import from its own floor and from those before it.
FLOORS = (
    "errors",
    "optional",
    "sizes",
    "progress",
    "search_path",
    "children",
    "checkpoint",
    "container",
    "families",
    "doctor",
    "codecs",
    "artifacts",
    "evidence",
    "assign",
    "formats",
    "onepass",
    "receipt",
    "headtune",
    "verification",
    "publishing",
    "report",
    "recipe",
    "demo",
    "run",
    "cli",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def trees() -> dict[Path, ast.Module]:
    """All modules, parsed."""
    return {path: ast.parse(path.read_text()) for path in MODULES}


def floor_of(dotted: str) -> int | None:
    parts = dotted.split(".")
    if parts[0] != "qexport" or len(parts) < 2 or parts[1].startswith("__"):
        return None
    return FLOORS.index(parts[1])


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            names.add(node.module)
            if node.module == "qexport":
                names |= {f"qexport.{alias.name}" for alias in node.names if alias.name in FLOORS}
    return names


def test_every_package_has_a_floor():
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert found <= set(FLOORS)


def test_imports_point_down():
    wrong = []
    for path, tree in trees().items():
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        mine = floor_of(dotted)
        for name in imported(tree):
            theirs = floor_of(name)
            if mine is not None and theirs is not None and theirs > mine:
                wrong.append(f"{dotted} imports {name}, which is above it")
    assert wrong == []


def test_cards_and_reports_have_nothing_but_receipts_in_common():
    for here, there in (("publishing", "report"), ("report", "publishing")):
        found = [imported(tree) for path, tree in trees().items() if path.is_relative_to(PACKAGE / here)]
        assert found
        assert [name for names in found for name in names if name.startswith(f"qexport.{there}.")] == []


def test_every_module_has_a_title():
    titles = {path: ast.get_docstring(tree) for path, tree in trees().items()}
    assert [path for path, title in titles.items() if not title or "TODO" in title] == []


def test_a_test_file_s_name_is_its_own():
    """pytest takes a second file of one name for the first, and runs neither."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_cycle_between_modules():
    graph = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imported(
            _without_type_checking(ast.parse(p.read_text()))
        )
        for p in MODULES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        for target in sorted(graph[name]):
            if target != name:
                visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def _without_type_checking(tree: ast.Module) -> ast.Module:
    """Imports under TYPE_CHECKING, or inside functions, make no cycle when the program starts."""
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module(body, [])


def test_help_loads_nothing_heavy():
    """Of every command: parse first, import after. By modules, since time depends on the machine."""
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from qexport.cli.main import COMMANDS, cli\n"
        "heavy = {'torch', 'numpy', 'transformers', 'gguf', 'numba', 'rich', 'huggingface_hub', 'pydantic',\n"
        "    'yaml', 'jinja2', 'tokenizers', 'safetensors', 'mlx', 'mlx_lm', 'xllamacpp'}\n"
        "known = {name: cli.get_command(None, name) for name in COMMANDS}\n"
        "inner = [[name, one] for name in COMMANDS for one in getattr(known[name], 'commands', ())]\n"
        "for words in [[], *([name] for name in COMMANDS), *inner]:\n"
        "    result = CliRunner().invoke(cli, [*words, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    ours = [name for name in sys.modules if name.startswith('qexport.')]\n"
        "    print(words, sorted(heavy & set(sys.modules)), len(ours) < 100)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = run.stdout.splitlines()
    assert len(found) > 10
    assert [line for line in found if not line.endswith("[] True")] == []


def test_public_names_are_listed_at_doors_only():
    """``__init__.py`` is a door; inside, an underscore says what is private, and nothing is said twice."""
    inside = [path for path in MODULES if path.name != "__init__.py"]
    assert [path for path in inside if re.search(r"^__all__\b", path.read_text(), re.MULTILINE)] == []


def test_a_class_name_means_one_thing():
    """docs/concepts.md has the words. Each program of a child has its ``Loaded``: that is their protocol."""
    named: dict[str, list[str]] = {}
    for path, tree in trees().items():
        if "programs" not in path.parts:
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    named.setdefault(node.name, []).append(path.name)
    assert {name: paths for name, paths in named.items() if len(paths) > 1} == {}


def test_who_asks_llama_cpp_s_tools_is_marked():
    """Else `make test-toolchain` passes it over, and nobody ever runs it."""
    unmarked: list[str] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if re.search(r"^from oracle import .*\btoolchain\b", text, re.MULTILINE):
            unmarked += [f"{path.name}: {name}" for name in _unmarked(ast.parse(text).body, marked=False)]
    assert unmarked == []
    planted = ast.parse("class TestIt:\n def test_it(self):\n  toolchain.convert()")
    assert _unmarked(planted.body, marked=False) == ["test_it"]


def _unmarked(body: list[ast.stmt], *, marked: bool) -> list[str]:
    """Tests that name `oracle.toolchain`, or are skipped by it, without its mark."""
    marks = [node for node in body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    marked = marked or any(_has_mark(node) for node in marks)
    found: list[str] = []
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not marked:
            if any(map(_has_mark, node.decorator_list)):
                continue
            if isinstance(node, ast.ClassDef):
                found += _unmarked(node.body, marked=False)
            elif node.name.startswith("test_") and "toolchain." in ast.unparse(node):
                found.append(node.name)
    return found


def _has_mark(node: ast.AST) -> bool:
    return re.search(r"\bmark\.toolchain\b|\btoolchain\.needs_", ast.unparse(node)) is not None
