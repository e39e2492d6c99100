"""Where a catalog lies: on a local disk, in S3, or at any other URL that fsspec knows.

S3, and what speaks like it, is read by Arrow, which is there anyway. Credentials come from the usual places only
(environment, `~/.aws`, the machine's role), each process of its own: what travels to Ray's workers holds none, and no
message does. Called by `pipelines.embedding.source`, in the driver and in workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipelines.importers.rejects import ImportFailed

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Environment variables that name another server than Amazon's; the first one set counts."""
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
DENIED = (
    "access denied; S3 credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) of this "
    "command and of every node of a Ray that already runs, from ~/.aws or from the machine's role"
)
NO_ANSWER = "the S3 server does not answer (AWS_ENDPOINT_URL names another than Amazon's)"
_MEANINGS: Mapping[str, str] = {
    "ACCESS_DENIED": DENIED,
    "INVALID_ACCESS_KEY_ID": DENIED,
    "SIGNATURE_DOES_NOT_MATCH": DENIED,
    "HTTP status 403": DENIED,
    "NETWORK_CONNECTION": NO_ANSWER,
}


def files_at(url: str, suffixes: frozenset[str]) -> tuple[list[str], Any]:
    """Return the sorted paths of the file at `url`, or of those in the folder there, and the fsspec filesystem of them.

    Files of other `suffixes` are left out. Raises ImportFailed in one line when there is none, or no way to it.
    """
    shown = without_password(url)
    try:
        filesystem, path = _opened(url)
        kind = filesystem.info(path)["type"] if filesystem.exists(path) else None
        # A listing names what is there: asking about each of its files again would be a request a file.
        found = sorted(filesystem.find(path)) if kind == "directory" else [path] * (kind is not None)
        if kind is None and _is_s3(url) and not filesystem.exists(bucket := path.partition("/")[0]):
            raise ImportFailed(f"{shown}: there is no bucket {bucket}")
    except (OSError, ValueError, ImportError) as error:
        raise ImportFailed(f"{shown}: cannot be opened ({why(error).replace(url, shown)})") from error
    readable = [p for p in found if suffix(p) in suffixes]
    if not readable:
        raise ImportFailed(f"{shown}: no .parquet, .jsonl or .arrow file there")
    return readable, filesystem


def why(error: BaseException) -> str:
    """Return in one line what went wrong while a file was looked for or read."""
    text = next(iter(str(error).splitlines()), "")
    for sign, meaning in _MEANINGS.items():
        if sign in text:
            return meaning
    return f"{type(error).__name__}: {text}"


def suffix(path: str) -> str:
    """Return the ending of a path in small letters, with its dot."""
    return PurePosixPath(path).suffix.lower()


def without_password(url: str) -> str:
    """Return `url` for a message: without a user and password, and without what follows a question mark."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _is_s3(url: str) -> bool:
    return urlsplit(url).scheme == "s3"


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    if not _is_s3(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem, str(path)
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket or "@" in bucket:
        raise ImportFailed("an S3 URL is s3://BUCKET/FOLDER, without keys; those come from the environment")
    return _s3(bucket, os.environ), f"{bucket}/{key}".rstrip("/")


def _s3(bucket: str, environment: Mapping[str, str]) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), None)
    region = next((environment[name] for name in REGIONS if environment.get(name)), None)
    if region is None and endpoint is None:
        region = resolve_s3_region(bucket)
    return ArrowFSWrapper(S3FileSystem(region=region, endpoint_override=endpoint))
