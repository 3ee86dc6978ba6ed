"""The rules of CONTRIBUTING.md that a program can check, and a planted mistake for each, so that no rule is blind.

Who may import whom inside ``broker`` is import-linter's part (pyproject.toml); foreign modules are judged here.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PRODUCT: Final = ("broker", "protocol", "simulator", "bench")

LONG: Final = 300
TOO_LONG: Final = 400
BANNED_NAMES: Final = re.compile(r"(Manager|Handler|Helper|Util|Utils|Service|Common|Core)(?=[A-Z0-9]|$)")

# Of foreign modules, who in `broker` knows them.
KNOWN_BY: Final = {
    "websockets": {"server", "admin", "connection", "http", "door", "tenant_socket", "terminal"},  # terminal: a client
    "prometheus_client": {"metrics"},
    "ctypes": {"process", "launcher", "orphans"},
    "signal": {"process", "launcher", "orphans", "app", "terminal"},  # app: SIGTERM begins the drain
}
# What `protocol` may import: no I/O, no clock, no randomness, no loop. Its __main__ modules are programs.
PURE: Final = frozenset(
    ("__future__", "abc", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses", "enum",
     "functools", "hashlib", "itertools", "json", "math", "msgspec", "operator", "protocol", "re", "string", "struct",
     "textwrap", "types", "typing", "unicodedata")
)  # fmt: skip
# The units whose failure must not end another one's: each may stop any exception, once.
BULKHEADS: Final = {
    "session task": ("broker/sessions/session.py", "broker/sessions/registry.py"),
    "connection handler": ("broker/sockets/connection.py", "broker/sockets/server.py"),
    "process supervisor": ("broker/processes/process.py", "broker/pool/pool.py"),
}
# In two parts, so that this file does not hold what it forbids.
HOSTS: Final = "|".join(
    rf"{name}\.{end}"
    for name, end in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "(?:org|com)"), ("crates", "io"), ("golang", "org"),
        ("debian", "org"), ("ghcr", "io"), ("docker", "(?:io|com)"), ("quay", "io"),
    )
)  # fmt: skip
FORBIDDEN_TEXT: Final = re.compile(rf"(?:{HOSTS})|(?<![\w)}}\].~*$/-])/work\b|\.\./shared|\.librar[y]/")
NOT_COMMITTED: Final = {"node_modules", "var", "dist", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One Python file; ``path`` is relative to the root, with slashes."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        return Path(self.path).stem

    def at(self, node: ast.stmt | ast.expr | ast.excepthandler) -> str:
        return f"{self.path}:{node.lineno}"


def sources(*folders: str) -> Iterator[Source]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield Source(path.relative_to(ROOT).as_posix(), path.read_text())


def imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Every import with the full name of what it names, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


# --- the rules: each gives one line per mistake ---


def without_docstring(source: Source) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield f"{source.path}: no docstring"


def too_long(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > TOO_LONG:
        yield f"{source.path}: {lines} lines, split it"
    elif lines > LONG and f"{LONG} lines" not in (ast.get_docstring(source.tree) or ""):
        yield f"{source.path}: {lines} lines, and the docstring does not say why it has more than {LONG} lines"


def banned_name(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and BANNED_NAMES.search(node.name):
            yield f"{source.at(node)}: class {node.name}"


def foreign_import(source: Source) -> Iterator[str]:
    for node, name in imports(source.tree):
        known_by = KNOWN_BY.get(name.partition(".")[0])
        if source.path.startswith("broker/") and known_by is not None and source.module not in known_by:
            yield f"{source.at(node)}: {name} is known by {', '.join(sorted(known_by))} only"


def impure_import(source: Source) -> Iterator[str]:
    if source.path.startswith("protocol/") and source.module != "__main__":
        for node, name in imports(source.tree):
            if name.partition(".")[0] not in PURE:
                yield f"{source.at(node)}: {name} is not pure"


def mock_import(source: Source) -> Iterator[str]:
    for node, name in imports(source.tree):
        if name.startswith("unittest.mock") or name.partition(".")[0] == "mock":
            yield f"{source.at(node)}: {name}"


def _is_broad(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(one is None or (isinstance(one, ast.Name) and one.id in ("Exception", "BaseException")) for one in kinds)


def broad_suppress(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("suppress", "contextlib.suppress"):
            continue
        if any(_is_broad(kind) for kind in node.args):
            yield f"{source.at(node)}: {ast.unparse(node)}"


def broad_except(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler) or not _is_broad(node.type):
            continue
        if not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            yield f"{source.at(node)}: a broad except that does not raise"


def silent_test(source: Source) -> Iterator[str]:
    if not source.module.startswith("test_"):
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        if not ast.get_docstring(node):
            yield f"{source.at(node)}: {node.name} does not say what it expects"


def fixed_sleep(source: Source) -> Iterator[str]:
    if source.path == "tests/waiting.py":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "sleep" and node.args:
            delay = node.args[0]
            if isinstance(delay, ast.Constant) and isinstance(delay.value, int | float) and delay.value > 0:
                yield f"{source.at(node)}: {ast.unparse(node)}, use tests.waiting.eventually"


def forbidden_text(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.text.split("\n"), 1):
        if found := FORBIDDEN_TEXT.search(line):
            yield f"{source.path}:{number}: {found.group()!r}"


Rule = Callable[[Source], Iterator[str]]

# rule -> the folders it holds for, and a mistake that it must find: the file's name and its text.
RULES: Final[dict[Rule, tuple[tuple[str, ...], str, str]]] = {
    without_docstring: (PRODUCT, "broker/x.py", "import os\n"),
    too_long: (PRODUCT, "broker/x.py", '"""x"""\n' + "\n" * LONG),
    banned_name: (PRODUCT, "broker/x.py", "class SessionManager: ...\n"),
    foreign_import: (PRODUCT, "broker/x.py", "from websockets.asyncio.server import serve\n"),
    impure_import: (PRODUCT, "protocol/x.py", "def f():\n    import time\n"),
    mock_import: ((*PRODUCT, "tests"), "tests/x.py", "from unittest import mock\n"),
    broad_suppress: ((*PRODUCT, "tests"), "broker/x.py", "with contextlib.suppress(OSError, Exception): ...\n"),
    silent_test: (("tests",), "tests/test_x.py", "async def test_x(): ...\n"),
    fixed_sleep: (("tests",), "tests/x.py", "async def f():\n    await asyncio.sleep(0.1)\n"),
}


def test_the_tree_keeps_every_rule() -> None:
    """No file of a rule's folders breaks it."""
    mistakes = [
        f"{rule.__name__}: {line}"
        for source in sources(*PRODUCT, "tests")
        for rule, (folders, _, _) in RULES.items()
        if source.path.startswith(tuple(f"{folder}/" for folder in folders))
        for line in rule(source)
    ]
    assert mistakes == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_a_planted_mistake(rule: Rule) -> None:
    """A file that breaks the rule is named, with its line."""
    _, path, text = RULES[rule]
    assert [line.partition(":")[0] for line in rule(Source(path, text))] == [path]


def test_only_the_bulkheads_stop_any_exception() -> None:
    """A broad except raises again, but for one in each of the units that must not end another one's life."""
    broad = {source.path: list(broad_except(source)) for source in sources(*PRODUCT)}
    for paths in BULKHEADS.values():
        stops = [line for path in paths for line in broad.pop(path, [])]
        assert len(stops) <= 1, stops
    assert [line for lines in broad.values() for line in lines] == []


@pytest.mark.parametrize(
    ("clause", "mistakes"),
    [
        ("except:\n    log()", 1),
        ("except Exception:\n    log()", 1),
        ("except (OSError, BaseException) as error:\n    log(error)", 1),
        ("except Exception as error:\n    raise Ours from error", 0),
        ("except OSError:\n    log()", 0),
    ],
)
def test_a_broad_except_is_recognised(clause: str, mistakes: int) -> None:
    """Bare, named and in a tuple it is found; one that raises, or that is narrow, is not."""
    assert len(list(broad_except(Source("broker/x.py", f"try:\n    f()\n{clause}\n")))) == mistakes


def committed_text() -> Iterator[Source]:
    """Every text file of the tree; hidden folders are caches, but for .ci."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if any(part in NOT_COMMITTED or (part.startswith(".") and part != ".ci") for part in parts[:-1]):
            continue
        if path.is_file() and b"\0" not in (content := path.read_bytes())[:1024]:
            yield Source("/".join(parts), content.decode(errors="replace"))


def test_the_tree_stands_alone() -> None:
    """No file names a package registry's host or a path of the machine it was written on."""
    assert [line for source in committed_text() for line in forbidden_text(source)] == []


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("https://files.pythonhosted" + ".org/x", 1),
        ("see /" + "work/notes.md", 1),
        ("cat ..", 0),
        ("cat .." + "/shared/x", 1),
        ("the session's home/, work/ and tmp/; {session}/" + "work; /workspace", 0),
    ],
)
def test_a_forbidden_text_is_recognised(text: str, mistakes: int) -> None:
    """Hosts and foreign paths are found, look-alikes are not."""
    assert len(list(forbidden_text(Source("README.md", text)))) == mistakes
