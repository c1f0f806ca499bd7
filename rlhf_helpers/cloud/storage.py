"""Uploads data sets to a bucket: it checks them first, and never leaves half a file."""

import hashlib
import os
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_helpers import schemas
from rlhf_helpers.cloud.commands import setup_commands
from rlhf_helpers.cloud.setup import CloudError, Setup
from rlhf_helpers.extras import needs_extra

CHUNK = 1024 * 1024  # bytes sent at once; Google Cloud takes multiples of 256 KiB
PATIENCE = 120.0  # seconds during which a chunk is sent again after a failure


def is_emulated() -> bool:
    """Whether storage is a local emulator, that is, whether STORAGE_EMULATOR_HOST is set."""
    return bool(os.environ.get("STORAGE_EMULATOR_HOST"))


def network_errors() -> tuple[type[Exception], ...]:
    """The exceptions of Google's clients when the network, the service or the account fails."""
    with needs_extra("cloud"):
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption
        from requests import RequestException

    return GoogleAPIError, GoogleAuthError, DataCorruption, RequestException


def upload(
    setup: Setup, path: schemas.StrPath, read: Callable[[Path], Any] = schemas.read_preferences
) -> str:
    """Check a JSONL file with `read`, send it, and return its address in the bucket.

    The file is sent in chunks and compared by checksum. Google Cloud shows an object only when its
    last chunk has arrived, so an interruption leaves neither half a file nor a damaged older one. A
    file that is in the bucket already is not sent again. Raises `DataError` for a bad record before
    anything is sent, and `CloudError` if the network fails.
    """
    with needs_extra("cloud"):
        from google.api_core.exceptions import NotFound
        from google.cloud.storage.retry import DEFAULT_RETRY

    path = Path(path)
    read(path)
    uri, patient = f"{setup.uri}/data/{path.name}", DEFAULT_RETRY.with_timeout(PATIENCE)
    try:
        with path.open("rb") as file:
            bucket = open_bucket(setup)
            name = f"{setup.name}/data/{path.name}"
            there = bucket.get_blob(name, retry=patient)
            if there is None or there.md5_hash != _md5(file):
                file.seek(0)
                # Without a size the client sends chunks; with one it sends small files whole.
                blob = bucket.blob(name, chunk_size=CHUNK)
                blob.upload_from_file(file, content_type="application/jsonl", retry=patient)
    except NotFound:
        remedy = setup_commands(setup)["bucket"]
        raise CloudError(f"There is no bucket gs://{setup.bucket}. Make it: {remedy}") from None
    except network_errors() as error:
        raise CloudError(
            f"{path}: the upload was interrupted ({error}). {uri} is as it was before, or "
            "complete, never half. Run this again when the network works."
        ) from error
    return uri


def list_data(setup: Setup) -> pd.DataFrame:
    """The course's data files in the bucket: address, bytes, and MD5 checksum (base64)."""
    folder = f"{setup.name}/data/"
    rows = [
        (f"gs://{setup.bucket}/{blob.name}", blob.size, blob.md5_hash)
        for blob in open_bucket(setup).list_blobs(prefix=folder)
    ]
    return pd.DataFrame(rows, columns=["uri", "bytes", "md5"])


def open_bucket(setup: Setup, **options: Any) -> Any:
    """Return the bucket of `setup`, without a request; `options` go to `storage.Client`."""
    with needs_extra("cloud"):
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage  # type: ignore[attr-defined]

    if not setup.bucket:
        raise CloudError("No bucket is named. Set GOOGLE_CLOUD_PROJECT, or give Setup a bucket.")
    try:
        return storage.Client(project=setup.project, **options).bucket(setup.bucket)
    except DefaultCredentialsError:
        login = setup_commands(setup)["credentials"]
        raise CloudError(f"No application default credentials. Get them: {login}") from None


def _md5(file: Any) -> str:
    """The MD5 checksum of a file in base64, as Google Cloud writes it."""
    return b64encode(hashlib.file_digest(file, "md5").digest()).decode()
