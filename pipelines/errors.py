"""What offline work refuses with a sentence that says what to change. Commands print it without a traceback.

Knows nothing of commands. Raised by the build and the trainings.
"""


class BuildError(ValueError):
    """An artifact cannot be made as asked; the message says what to change."""


class TrainingError(BuildError):
    """A ranker cannot be trained as asked, or its training failed; the message says why and what to change."""
