"""What must not be forgotten: every error pickles and maps, every port has a fake and a client, every setting is
explained."""

import ast
import importlib
import inspect
import pickle

import pytest

from serve import clients, errors, fakes, ports
from serve.errors import HTTP_ERRORS, RecommendError, http_error

NO_CLIENT = {"EventSink", "Profiles"}  # the ingress writes to the store itself: an acknowledgement has no hop to lose
NEEDS_SERVE = ("serve.app", "serve.deployments")


def _error_classes(sources):
    for source in sources:
        if source.package == "loadtests" or source.module.startswith(NEEDS_SERVE):
            continue
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef):
                cls = getattr(importlib.import_module(source.module), node.name)
                if isinstance(cls, type) and issubclass(cls, Exception):
                    yield cls


def test_every_error_survives_pickling_with_its_message_and_attributes(sources) -> None:
    found = list(_error_classes(sources))
    assert len(found) > 20
    for cls in found:
        error = cls("what went wrong")
        for name in vars(error):
            if isinstance(value := getattr(error, name), int | float) and not isinstance(value, bool):
                setattr(error, name, value + 1)
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is cls
        assert str(copy) == str(error) and "what went wrong" in str(copy)
        assert vars(copy) == vars(error)


def test_every_error_of_the_request_path_has_a_row_in_the_http_table() -> None:
    ours = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RecommendError)]
    assert {c for c in ours} == set(HTTP_ERRORS)


def _subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def test_every_error_of_the_request_path_maps_to_a_status_that_says_whose_fault_it_is(sources) -> None:
    list(_error_classes(sources))  # imports every module that defines one
    for cls in {RecommendError, *_subclasses(RecommendError)}:
        row = http_error(cls("x"))
        client = issubclass(cls, errors.ClientError)
        assert (400 <= row.status < 500) if client else (500 <= row.status < 600), cls
        assert row.title


def test_the_tree_in_the_docstring_of_errors_is_the_tree_in_the_code() -> None:
    ours = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RecommendError)]
    assert errors.__doc__
    assert not [c.__name__ for c in ours if c.__name__ not in errors.__doc__]


def _ports():
    return [c for c in vars(ports).values() if getattr(c, "_is_protocol", False) and c.__module__ == "serve.ports"]


def _methods(cls):
    return {n: f for n, f in vars(cls).items() if inspect.isfunction(f) and not n.startswith("_")}


@pytest.mark.parametrize("port", _ports(), ids=lambda p: p.__name__)
def test_every_port_has_a_fake_and_a_client_with_its_signatures(port) -> None:
    implementations = [getattr(fakes, f"Fake{port.__name__}")]
    if port.__name__ not in NO_CLIENT:
        implementations.append(getattr(clients, f"{port.__name__}Client"))
    for implementation in implementations:
        for name, wanted in _methods(port).items():
            assert inspect.signature(getattr(implementation, name)) == inspect.signature(wanted), implementation


def test_the_silent_metrics_leave_no_metric_out() -> None:
    from serve.metrics import ServeMetrics

    wanted = _methods(ServeMetrics)
    assert wanted and set(wanted) <= set(_methods(fakes.SilentMetrics))


def test_every_degraded_reason_has_its_rung() -> None:
    from serve.degradation import DegradationLevel, DegradedReason, level_of

    for reason in DegradedReason:
        assert level_of([reason]) > DegradationLevel.full


def test_every_stage_and_outcome_has_a_degraded_reason() -> None:
    from typing import get_args, get_type_hints

    from serve.degradation import DegradedReason
    from serve.runner import Outcome, StagePolicy

    for stage in get_args(get_type_hints(StagePolicy)["name"]):
        for outcome in set(get_args(Outcome)) - {"ok"}:
            DegradedReason("query_not_understood" if stage == "query" else f"{stage}_{outcome}")


def test_every_event_type_is_in_the_contract() -> None:
    from typing import get_args

    from models.events import EventType
    from serve.schemas import EventName

    assert set(get_args(EventName)) == {t.name for t in EventType}
