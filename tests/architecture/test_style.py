"""House rules that a machine can check."""

import ast
import re

import pytest

MOST_LINES = 350


def test_every_file_says_what_it_is(sources) -> None:
    assert not [s.name for s in sources if not ast.get_docstring(s.tree)]


def test_no_file_is_long(sources) -> None:
    assert not [(s.name, n) for s in sources if (n := len(s.text.splitlines())) > MOST_LINES]


def test_no_module_is_a_drawer_for_everything(sources) -> None:
    assert not [s.name for s in sources if s.path.name in {"utils.py", "common.py", "helpers.py", "misc.py"}]


def _is_program(source) -> bool:
    return any(isinstance(n, ast.If) and "__name__" in ast.unparse(n.test) for n in source.tree.body)


def test_models_and_serve_never_print(sources) -> None:
    """A library is silent; a program (`python -m …`) may write its result to stdout."""
    wrong = [
        f"{s.name}:{node.lineno}"
        for s in sources
        if s.package in {"models", "serve"} and not _is_program(s)
        for node in ast.walk(s.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong


def test_remote_calls_are_made_in_the_clients_only(sources) -> None:
    wrong = [
        f"{s.name}:{node.lineno}"
        for s in sources
        if s.package in {"models", "serve"} and s.name != "serve/clients.py"
        for node in ast.walk(s.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "remote"
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["models", "serve"])
def test_nothing_unpickles_or_evaluates_what_came_from_outside(sources, package: str) -> None:
    """Only safetensors, npy without pickle, Arrow and JSON are read; fakes may pickle their own arguments."""
    wrong = []
    for s in sources:
        if s.package != package or s.name == "serve/fakes.py":
            continue
        for node in ast.walk(s.tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "os.system"}:
                wrong.append(f"{s.name}:{node.lineno} {name}")
            if name == "np.load" and not any(k.arg == "allow_pickle" for k in node.keywords):
                wrong.append(f"{s.name}:{node.lineno} np.load without allow_pickle=False")
            if any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in node.keywords):
                wrong.append(f"{s.name}:{node.lineno} trust_remote_code")
    assert not wrong


def test_no_file_names_a_place_of_somebody_s_machine(sources) -> None:
    place = re.compile(r"(?<![\w.])/(?:home|work|root|Users)/\w+")
    assert not [(s.name, m.group()) for s in sources if (m := place.search(s.text))]


def test_secrets_come_from_the_environment_and_never_from_settings(sources) -> None:
    from cluster.config import Settings

    def names(model, path=""):
        for name, field in model.model_fields.items():
            yield f"{path}{name}"
            if hasattr(field.annotation, "model_fields"):
                yield from names(field.annotation, f"{path}{name}.")

    secret = re.compile(r"password|secret|signing|api_?key|credential|^token$|_token$")
    assert not [n for n in names(Settings) if secret.search(n.split(".")[-1])]
