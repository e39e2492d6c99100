"""The vector of a text for one release. Called by whatever embeds while serving: searches, live items, declarations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from serve.context import StageCall
from serve.errors import DependencyError
from serve.ports import QueryEncoder


async def encoded(encoder: QueryEncoder, call: StageCall, text: str, bundle: ReleaseBundle) -> npt.NDArray[np.float32]:
    """Return float32[bundle.text_dimension]. Raises DependencyError while the encoder is away or of another release."""
    vector = await encoder.encode(call, text)
    if vector.shape != (bundle.text_dimension,):
        raise DependencyError("the encoder is not the one this release was built with; build a release with it")
    return vector
