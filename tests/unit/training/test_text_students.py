"""What a student of a text ranker is told: what was taken where a list holds it, else its teacher's order alone."""

import numpy as np
import pytest
import torch

from models.retrieval.query import RetrievalQuery
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase, given
from pipelines.training.text_fit import _loss


def test_of_a_list_that_misses_what_was_taken_a_student_learns_its_teacher_s_order_alone():
    found = given(np.arange(20, dtype=np.int32))
    held, missed = (TextCase(0, RetrievalQuery(n=20, now_ms=0), found, *taken) for taken in ((3, 3), (30, -1)))
    asked = []

    def teacher(case, rows):
        asked.append(rows)
        return rows.astype(np.float32) / 10

    class Reader:
        def read(self, query, rows):
            return [(np.array([int(row)]), None) for row in rows]

        def padded(self, pairs):
            return {"ids": np.array([ids[0] for ids, _ in pairs], np.int64)}

    class Order(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = torch.nn.Parameter(torch.ones(()))

        def forward(self, ids):
            return type("Out", (), {"logits": (self.own * ids / 10)[:, None]})

    settings = TextTrainingSettings(distil_weight=0.0, hard_negatives=3, bfloat16=False)
    for case, first in ((held, 3), (missed, None)):
        loss = _loss(Order(), Reader(), [(case, (0, 0, 0))], 40, settings, teacher)
        rows = asked.pop()
        assert len(rows) == settings.width and (rows[0] == first if first else 30 not in rows)
        # It scores as its teacher does: where only that counts the loss is the entropy of the shares.
        own = np.exp(rows / 10) / np.exp(rows / 10).sum()
        wanted = -(own * np.log(own)).sum() if first is None else -np.log(own[0])
        assert float(loss.detach()) == pytest.approx(wanted, rel=1e-4)
