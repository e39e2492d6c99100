"""The packages as syntax trees, read once."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "serve", "pipelines", "cluster", "loadtests")


@dataclass(frozen=True)
class Source:
    """One file of ours: where it is, what it says, and which modules it imports where."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def package(self) -> str:
        return self.name.split("/")[0]

    @property
    def module(self) -> str:
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def imports(self) -> set[str]:
        """Every module named in an import, at the top or inside a function, but for type checkers only."""
        return {name for node in self._nodes(self.tree.body) for name in _imported(node)}

    def top_imports(self) -> set[str]:
        """Modules that importing this file imports."""
        found: set[str] = set()
        stack = list(self.tree.body)
        while stack:
            node = stack.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and _for_type_checkers(node):
                stack.extend(node.orelse)
                continue
            found |= set(_imported(node))
            stack.extend(c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt))
        return found

    def _nodes(self, body: list[ast.stmt]):
        for top in body:
            if isinstance(top, ast.If) and _for_type_checkers(top):
                continue
            yield from ast.walk(top)


def _for_type_checkers(node: ast.If) -> bool:
    return "TYPE_CHECKING" in ast.unparse(node.test)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        # `from serve import x` may import the module serve.x
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _sources() -> list[Source]:
    files = [f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))]
    return [Source(f, text := f.read_text("utf-8"), ast.parse(text, str(f))) for f in files]


_ALL = _sources()


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    return _ALL


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
