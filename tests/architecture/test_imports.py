"""Who may import what. The folders' rule, and where each heavy library may appear."""

import json
import os
import subprocess
import sys

import pytest

OURS = {"models", "serve", "pipelines", "cluster", "loadtests", "tests"}
MAY_IMPORT = {
    "models": {"models"},
    "serve": {"serve", "models"},
    "pipelines": {"pipelines", "models"},
    "cluster": OURS - {"tests"},
    "loadtests": {"loadtests", "serve.schemas"},
}
PLACES = {
    "ray": (
        "serve/app.py",
        "serve/clients.py",
        "serve/metrics.py",
        "serve/deployments/",
        "pipelines/",
        "cluster/",
        "loadtests/bench/",
    ),
    "fastapi": ("serve/deployments/",),
    # The preflight asks a CUDA build for its GPUs, and the build of a release sets the threads of the encoder.
    "torch": ("models/", "pipelines/", "cluster/preflight.py", "cluster/workspace.py", "loadtests/bench/"),
    "sentence_transformers": ("models/", "pipelines/", "loadtests/bench/"),
    "transformers": ("models/", "pipelines/", "loadtests/bench/"),
    "faiss": ("models/", "loadtests/bench/"),
    "vllm": ("models/", "loadtests/bench/"),
    "onnxruntime": ("models/",),
    "openvino": ("models/",),
    "redis": ("models/", "pipelines/", "cluster/", "loadtests/bench/"),
}
HEAVY = ("torch", "ray", "vllm", "faiss", "transformers", "sentence_transformers", "onnxruntime", "openvino")
RAY_AT_THE_TOP = ("serve/app.py", "serve/deployments/")


def _root(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_folder_imports_only_what_the_architecture_allows(sources, package: str) -> None:
    allowed = MAY_IMPORT[package]
    wrong = {
        f"{source.name} imports {module}"
        for source in sources
        if source.package == package and not source.name.startswith("loadtests/bench/")
        for module in source.imports()
        if _root(module) in OURS
        and not any(module == a or module.startswith(a + ".") for a in allowed)
        # `from serve import schemas` names the package on the way to what is allowed
        and not any(a.startswith(module + ".") for a in allowed)
    }
    assert not wrong, sorted(wrong)


def test_no_code_of_ours_imports_its_tests(sources) -> None:
    assert not [s.name for s in sources if any(_root(m) == "tests" for m in s.imports())]


def test_load_tests_outside_the_bench_know_only_the_http_contract(sources) -> None:
    seen = {m for s in sources if s.package == "loadtests" and "/bench/" not in s.name for m in s.imports()}
    assert not {m for m in seen if _root(m) in {"models", "pipelines", "cluster"}}


@pytest.mark.parametrize("library", sorted(PLACES))
def test_a_library_is_imported_only_where_it_belongs(sources, library: str) -> None:
    wrong = [
        s.name
        for s in sources
        if any(_root(m) == library for m in s.imports()) and not s.name.startswith(PLACES[library])
    ]
    assert not wrong


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_are_imported_inside_functions(sources, library: str) -> None:
    wrong = [
        s.name
        for s in sources
        if any(_root(m) == library for m in s.top_imports()) and not s.name.startswith(RAY_AT_THE_TOP)
    ]
    assert not wrong


def test_nobody_rebinds_our_serve_package(sources) -> None:
    """After `from ray import serve`, `import serve.x` would find Ray's: always `as ray_serve`."""
    import ast

    wrong = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "ray":
                wrong += [source.name for a in node.names if a.name == "serve" and a.asname != "ray_serve"]
            if isinstance(node, ast.Import):
                wrong += [source.name for a in node.names if a.name.startswith("ray.serve")]
    assert not wrong


def test_importing_any_module_of_ours_takes_no_heavy_library_with_it(sources, root) -> None:
    modules = [
        s.module for s in sources if not s.name.startswith(RAY_AT_THE_TOP) and not s.name.endswith("__main__.py")
    ]
    program = (
        "import importlib, json, sys\n"
        "took = {}\n"
        f"heavy = set({HEAVY!r})\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    before = heavy & set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    if new := (heavy & set(sys.modules)) - before:\n"
        "        took[name] = sorted(new)\n"
        "print(json.dumps(took))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, json.dumps(modules)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
