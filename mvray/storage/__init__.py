"""Files below a root, on a local disk or on S3, and how a storage that fails for a while is waited for."""

from mvray.storage import retry, s3
from mvray.storage.local import Entry
from mvray.storage.retry import RetryPolicy, is_full
from mvray.storage.storage import Storage

__all__ = ["Entry", "RetryPolicy", "Storage", "is_full", "retry", "s3"]
