"""Judges the cascade of the settings: what the second ranker, a text ranker or a language model, brings over the first.

Asked of few users, because each costs passes of a large model: what comes next, with all that is known of the user and
with the latest few events alone, where a language model still knows the titles and behaviour knows little. The switch
by history (`models.ranker.cascade.most_events`) acts as it does when serving. Called by the `quality` benchmark behind
`evaluate --cascade`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from cluster.config import Settings
from cluster.console import Pace, say
from cluster.errors import OperatorError
from cluster.evaluate import dataset_named, embedded
from cluster.evaluate_driver import Driver, Tell
from cluster.prepare import text_ranker_of
from cluster.ray_job import training_ray
from cluster.workspace import Workspace
from models.events import EventLog
from pipelines.evaluation.evaluate import Report
from pipelines.evaluation.protocol import Case, Split, leave_last, validation_log

FEW = 4
"""Events that the second question lets everybody know."""
WHOLE, BRIEF = "next item", f"next item, {FEW} events"


def evaluate_cascade(
    settings: Settings, name: str, *, users: int, validation: bool = False, tell: Tell
) -> Mapping[str, Report]:
    """Return, by question, the first ranker alone and the cascade on the last event of `users` users (seeded choice).

    The first ranker is trained on the events before, or retrieval order without `pipelines.train_ranker`. With
    `validation` the test events are dropped. Raises OperatorError where the settings ask for no cascade.
    """
    if not settings.models.ranker.cascade.candidates:
        raise OperatorError(
            "--cascade judges the cascade of the settings, and they ask for none: set models.ranker.text_uri (a text "
            "ranker or a language model) and models.ranker.cascade.candidates (how many it reads again)"
        )
    if not settings.serve.pipeline.exclude_seen:
        raise OperatorError("--cascade asks for the next item, and these settings ask for the next basket: use --env")
    workspace = Workspace(settings)
    dataset = dataset_named(settings, workspace, name)
    catalog, embeddings, layout = embedded(settings, workspace, dataset)
    found = text_ranker_of(settings, workspace)
    assert found is not None  # settings with a cascade name its model, or they would not have been loaded
    folder = found[1]()
    whole = last_of(validation_log(dataset.events) if validation else dataset.events, users)
    with (
        training_ray(settings, say=tell),
        Pace(say) as pace,
        closing(Driver(settings, catalog, embeddings, layout, tell, pace)) as driver,
    ):
        methods = driver.cascade(folder)
        asked = {WHOLE: whole, BRIEF: Split(whole.train, [_brief(case) for case in whole.cases])}
        return {
            question: driver.ask(question, partial(_same, split), methods, (0,)) for question, split in asked.items()
        }


def last_of(log: EventLog, users: int) -> Split:
    """Return the training log of the usual protocol, and the last event of each of `users` users as a case."""
    split = leave_last(log)
    last = {case.user_id: case for case in split.cases}
    ids = sorted(last)
    chosen = np.random.default_rng(0).permutation(len(ids))[:users]
    return Split(split.train, [last[ids[at]] for at in sorted(chosen)])


def _brief(case: Case) -> Case:
    return replace(case, user=case.user.take(np.arange(len(case.user))[-FEW:]))


def _same(split: Split, seed: int) -> Split:
    return split
