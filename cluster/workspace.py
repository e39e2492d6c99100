"""The state folder as code: where models, data, artifacts and secrets of one deployment lie, and how to open them.

Called by the commands. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from cluster.config import Settings
from cluster.errors import OperatorError
from models.artifacts import ArtifactError, ArtifactStore
from models.encoder import Encoder
from models.hub import resolve, resolve_encoder, resolve_generator
from models.media.items import load_item_encoder
from models.progress import Progress, silent
from models.releases import Release, ReleaseBook
from pipelines.dataset import Dataset, read_dataset
from pipelines.embedding.blocks import EncoderSpec
from serve.auth import DEFAULT_TENANT
from serve.deployments.replica import CACHE_URL, SIGNING_KEY, STORE_URL


class Workspace:
    """One state folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.state
        # Not called `models`: workers run in the state folder, and such a folder there would shadow our package.
        self.models = Path(settings.models.cache) if settings.models.cache else self.root / "model-cache"
        self.data = self.root / "data"
        self.records = self.root / "records"
        self.events = self.root / "events"
        self.training = self.root / "training"
        self.logs = self.root / "logs"
        self.artifact_cache = self.root / "artifact-cache"

    def artifacts(self, tenant: str = DEFAULT_TENANT) -> ArtifactStore:
        """Open the artifact store of a tenant."""
        return ArtifactStore(self.settings.artifacts_url, cache=self.artifact_cache, tenant=tenant)

    def releases(self, tenant: str = DEFAULT_TENANT) -> ReleaseBook:
        """Open the releases of a tenant."""
        return ReleaseBook(self.artifacts(tenant))

    def newest_release(self, tenant: str = DEFAULT_TENANT) -> Release | None:
        """Return the release built last by the encoder of the settings, or None: the one that builds go on from.

        After a rollback it is the one gone back to, until another is built.
        """
        book = self.releases(tenant)
        wanted = book.wanted()
        if wanted is None or self.is_ours(wanted, tenant):
            return wanted
        every = [release for name in book.names() if (release := book.get(name)) is not None]
        return max((r for r in every if self.is_ours(r, tenant)), key=lambda r: r.created_ms, default=None)

    def release_to_serve(self, tenant: str = DEFAULT_TENANT) -> Release | None:
        """Return the release built last, by whichever encoder, or the one gone back to; None before the first."""
        return self.releases(tenant).wanted()

    def encoder_of(self, release: Release, tenant: str = DEFAULT_TENANT) -> str:
        """Return the URI of the encoder that a release was built by. Raises ArtifactError on a damaged manifest."""
        inputs = self.artifacts(tenant).meta(release.artifacts["embeddings"]).get("inputs", {})
        return str(inputs.get("encoder", self.settings.models.encoder.uri))

    def is_ours(self, release: Release, tenant: str = DEFAULT_TENANT) -> bool:
        """Whether a release was built by the encoder of the settings."""
        try:
            return self.encoder_of(release, tenant) == self.settings.models.encoder.uri
        except ArtifactError:
            return False

    def dataset_folder(self, name: str | None = None) -> Path:
        """Return where an imported data set lies."""
        return self.data / (name or self.settings.cluster.dataset)

    def dataset(self, name: str | None = None) -> Dataset:
        """Read an imported data set. Raises OperatorError naming the import command when it is not there."""
        folder = self.dataset_folder(name)
        if not folder.is_dir():
            raise OperatorError(f"no data set {folder.name}: run `raycommend import {folder.name}` first")
        return read_dataset(folder)

    def encoder_folder(self, *, progress: Progress = silent) -> Path:
        """Return the encoder's folder, fetched when it is not there."""
        return resolve(self.settings.models.encoder.uri, cache=self.models, progress=progress)

    def encoder_spec(self) -> EncoderSpec:
        """Return what decides the vector of an item."""
        of = self.settings.models.encoder
        media = tuple((n, m.uri or "", m.dimension, m.weight) for n, m in self.settings.models.media.chosen.items())
        dtype = self.settings.pipelines.embedding.dtype
        return EncoderSpec(of.uri, max_tokens=of.max_tokens, batch_size=of.batch_size, media=media, dtype=dtype)

    def media_folders(self, *, progress: Progress = silent) -> dict[str, Path]:
        """Return the folders of the image and audio encoders that the settings name, fetched when missing."""
        chosen = self.settings.models.media.chosen
        return {n: resolve_encoder(m.uri or "", cache=self.models, progress=progress) for n, m in chosen.items()}

    def generator_folder(self, *, progress: Progress = silent) -> Path:
        """Return the language model's folder, fetched and converted when it is not there."""
        return resolve_generator(self.settings.models.generator.uri, cache=self.models, progress=progress)

    def encoder(self, *, threads: int | None = None) -> Encoder:
        """Load the encoder of items. Raises OperatorError when its dimension is not what the settings say."""
        from models.encoder import SentenceTransformerEncoder

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        of = self.settings.models.encoder
        encoder = SentenceTransformerEncoder(self.encoder_folder(), max_tokens=of.max_tokens, batch_size=of.batch_size)
        if encoder.dimension != of.dimension:
            raise OperatorError(
                f"the encoder has {encoder.dimension} dimensions, models.encoder.dimension = {of.dimension}: "
                "set it to the model's"
            )
        media = self.settings.models.media
        if not media.chosen:
            return encoder
        return load_item_encoder(lambda: encoder, self.media_folders(), media)

    def secrets(self) -> dict[str, str]:
        """Return the environment that replicas need, creating what is missing in a file only the owner reads.

        What the environment holds wins over the file; the URLs of embedded servers are always their own.
        """
        file = self.root / "secrets.json"
        kept: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
        store = self.settings.cluster.store
        made = {"store_password": secrets.token_hex(24), "signing_key": secrets.token_hex(32), **kept}
        if made != kept:
            self.root.mkdir(parents=True, exist_ok=True)
            # Renamed into place: a process that is killed here must not leave half a password behind.
            draft = file.with_suffix(f".{os.getpid()}.tmp")
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump(made, out)
            draft.replace(file)
        values = {SIGNING_KEY: os.environ.get(SIGNING_KEY) or made["signing_key"]}
        if store.mode == "embedded":
            # Always our own servers, whatever the environment of an earlier or external deployment says.
            values[STORE_URL] = f"redis://:{made['store_password']}@127.0.0.1:{store.port}/0"
            values[CACHE_URL] = f"redis://:{made['store_password']}@127.0.0.1:{store.cache_port}/0"
            return values
        return {**values, **{n: os.environ[n] for n in (STORE_URL, CACHE_URL) if n in os.environ}}

    def store_password(self) -> str:
        """Return the password of the embedded servers."""
        self.secrets()
        password: str = json.loads((self.root / "secrets.json").read_text())["store_password"]
        return password
