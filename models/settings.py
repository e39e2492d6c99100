"""Settings of what is computed: the `models` section of the one typed tree (see `cluster.config`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.hub import DEFAULT_ENCODER_URI, DEFAULT_GENERATOR_URI
from models.media.settings import MediaSettings
from models.rankers.settings import RankerSettings
from models.retrieval.settings import RetrievalSettings

GrammarLevel = Literal["closed", "open"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EncoderSettings(_Section):
    """The text encoder."""

    uri: str = DEFAULT_ENCODER_URI
    """Where the model comes from: a folder, `hf://owner/name@revision` or `pypi://…#sha256=…`.

    Releases are built with it. Queries are embedded by what their release was built with.
    """
    dimension: int = Field(384, ge=1)
    """Length of its vectors; checked against the model when a release is built."""
    max_tokens: int = Field(128, ge=8, le=8192)
    """Longer texts are cut."""
    batch_size: int = Field(32, ge=1)
    """Texts per forward pass."""


class GeneratorSettings(_Section):
    """The language model that writes reasons."""

    uri: str = DEFAULT_GENERATOR_URI
    """Where the model comes from; a `.gguf` file is turned into safetensors once."""
    grammar: GrammarLevel = "closed"
    """`closed`: every word is an alternative, for small models; `open`: a capable model words the rest itself."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` takes bfloat16 where the hardware computes it, else float32 (four times faster there)."""
    max_model_len_tokens: int = Field(1024, ge=256)
    """Longest prompt plus answer."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory for the key-value cache on a CPU."""
    gpu_memory_share: float = Field(0.85, gt=0, le=1)
    """Share of a GPU's memory that the engine takes."""
    max_running: int = Field(16, ge=1)
    """Reasons computed together; a GPU takes hundreds."""
    threads: int = Field(1, ge=1)
    """CPU threads of the engine."""
    niceness: int = Field(5, ge=0, le=19)
    """Scheduling priority of the engine's processes, so that lists come before reasons on a small machine."""
    max_pending: int = Field(64, ge=1)
    """Reasons under way or waiting in one replica; beyond that templates answer at once."""


class ModelSettings(_Section):
    """The `models` section."""

    cache: str | None = None
    """Folder that fetched models are kept in; none keeps them in the state folder. Deployments may share one."""
    encoder: EncoderSettings = EncoderSettings()
    """Text to vectors."""
    media: MediaSettings = MediaSettings()
    """Images and audio of items."""
    generator: GeneratorSettings = GeneratorSettings()
    """Reasons."""
    ranker: RankerSettings = RankerSettings()
    """Scores."""
    retrieval: RetrievalSettings = RetrievalSettings()
    """Sources and their weights."""
