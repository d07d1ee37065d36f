"""Files below a root, on a local disk or on S3, and how a storage that fails for a while is waited for."""

from mvray.storage import retry, s3
from mvray.storage.retry import is_full
from mvray.storage.storage import Entry, Storage

__all__ = ["Entry", "Storage", "is_full", "retry", "s3"]
