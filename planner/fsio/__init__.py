"""The only package that writes files.

Every change to a disk goes through here, so that one page, `calls`, answers "what can change a byte?", and so that a
test can make each of these calls fail in turn. A file written here is fsynced before its name appears; a folder is
fsynced after its entries change. Nothing here knows what the bytes mean.

Operating-system errors leave as `NoSpace`, `ReadOnly` or `StorageError`.
"""

from __future__ import annotations

from planner.fsio.failures import not_as_written, storage_errors
from planner.fsio.files import (
    copy_file,
    create_file,
    fill_file,
    forget_cached,
    fsync_file,
    link_file,
    open_in_place,
    overwrite,
    remove_file,
    replace_file,
    reserve_file,
    share_file,
)
from planner.fsio.flags import fixed
from planner.fsio.folders import (
    attributes_like,
    ensure_folder,
    exchange_folders,
    fsync_folder,
    make_folder,
    publish_folder,
    remove_tree,
)
from planner.fsio.locking import lock
from planner.fsio.mounts import mounted_from, mounted_in
from planner.fsio.room import free_bytes, require_folder_of, require_space

__all__ = [
    "attributes_like",
    "copy_file",
    "create_file",
    "ensure_folder",
    "exchange_folders",
    "fill_file",
    "fixed",
    "forget_cached",
    "free_bytes",
    "fsync_file",
    "fsync_folder",
    "link_file",
    "lock",
    "make_folder",
    "mounted_from",
    "mounted_in",
    "not_as_written",
    "open_in_place",
    "overwrite",
    "publish_folder",
    "remove_file",
    "remove_tree",
    "replace_file",
    "require_folder_of",
    "require_space",
    "reserve_file",
    "share_file",
    "storage_errors",
]
