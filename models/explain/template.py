"""The template: a reason without a model, from the same frames as the grammar.

Deterministic: the evidence hash picks the frame and the facts, and every choice takes its first reading. It stands in
whenever the model may not, cannot or should not answer. Called by the explainer; knows nothing of engines.
"""

from models.explain.evidence import Evidence, evidence_hash
from models.explain.frames import drawn, parts_of, scenes_of, shapes_of


def template_reason(evidence: Evidence, language: str = "en") -> str:
    """Return one true sentence of at most 240 characters; an empty record gives one that claims nothing."""
    seed = evidence_hash(evidence)
    for scene in scenes_of(evidence, language):
        for frame in drawn(shapes_of(language)[scene.shape], seed):
            parts = parts_of(frame, scene)
            if parts is not None:
                return "".join(p[0] for p in parts)
    return NEUTRAL[0] if language.split("-")[0].casefold() != "zh" else NEUTRAL[1]


NEUTRAL = ("Something different to explore.", "试试不一样的选择。")
"""What is said where no frame fits, for example of a record whose titles are all too long to quote together."""
