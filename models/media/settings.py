"""Settings of images and audio: `models.media` in the settings tree."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModalitySettings(BaseModel):
    """One modality beside the text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    uri: str | None = None
    """Where its encoder comes from; none leaves the modality out."""
    dimension: int = Field(1280, ge=1, le=8192)
    """Length of the encoder's vectors; checked against the model when it is loaded."""
    weight: float = Field(0.3, gt=0, lt=1)
    """Share of an item's similarity that this modality decides where both items have it; the text has the rest."""
    batch_size: int = Field(16, ge=1)
    """Pictures or sounds per forward pass."""


class MediaSettings(BaseModel):
    """Images and audio of items. Nothing is read from anywhere until `roots` or `hosts` allow it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    image: ModalitySettings = ModalitySettings()
    """Pictures: JPEG, PNG, WebP, GIF (its first frame)."""
    audio: ModalitySettings = ModalitySettings(dimension=768)
    """Sounds: WAV files of PCM samples."""
    roots: tuple[str, ...] = ()
    """Folders that files may be read from; links that lead out of them are refused."""
    hosts: tuple[str, ...] = ()
    """Hosts that http and https URLs may name, exactly."""
    private_addresses: bool = False
    """Whether those hosts may have addresses that are not public: a media server in the own network."""
    timeout_s: float = Field(10.0, gt=0, le=120)
    """For fetching one file, from looking its host up to its last byte."""
    max_bytes: int = Field(20 << 20, ge=1024)
    """Larger files are not read."""
    max_pixels: int = Field(50_000_000, ge=1024)
    """Larger pictures are not decoded: a small file may unpack to gigabytes."""
    max_audio_s: float = Field(30.0, gt=0, le=600)
    """Longer sounds are cut."""

    @property
    def chosen(self) -> dict[str, ModalitySettings]:
        """The modalities that have an encoder, by name."""
        return {n: m for n, m in (("image", self.image), ("audio", self.audio)) if m.uri is not None}

    @model_validator(mode="after")
    def _leaves_something_to_the_text(self) -> MediaSettings:
        if sum(m.weight for m in self.chosen.values()) >= 1:
            raise ValueError("the weights of image and audio leave nothing to the text: their sum must be below 1")
        return self
