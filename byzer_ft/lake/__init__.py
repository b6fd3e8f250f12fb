"""Model directories <-> versioned Delta tables, and a verified local cache. The doors of this room.

`names` turns a model's name into an address, `scan` a directory into a manifest, `table` a manifest and its bytes into
one Delta commit, `cache` a version back into a directory. Knows nothing of SQL, Ray, torch or the catalog.
pyarrow and deltalake are imported when a door is used, not before.
"""

from byzer_ft.lake.cache import materialize
from byzer_ft.lake.manifest import FileEntry, Manifest, ModelMeta, ModelVersion
from byzer_ft.lake.names import delta_path
from byzer_ft.lake.scan import root_hash, scan_directory
from byzer_ft.lake.table import find_version, is_model_table, list_models, read_version, save_model

__all__ = [
    "FileEntry",
    "Manifest",
    "ModelMeta",
    "ModelVersion",
    "delta_path",
    "find_version",
    "is_model_table",
    "list_models",
    "materialize",
    "read_version",
    "root_hash",
    "save_model",
    "scan_directory",
]
