"""The manifest of an export, and whether its files are those that it lists."""

import hashlib
import json
import os
import pathlib
import typing

from .. import _checks as checks

__all__ = ["MANIFEST", "PACKAGE", "SCHEMA", "check_file", "read_manifest"]

MANIFEST = "exits.json"
PACKAGE = "exitens_runtime"  # the copy in an export
SCHEMA = 1  # of the manifest; a change that an older runtime would misread raises it


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """The manifest of an export as a dict, once it is known to be whole and of a schema known here.

    Raises:
        ValueError: `folder` holds no manifest, or one that is damaged, incomplete or of a newer schema.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_by, schema = manifest["made_by"], int(manifest["schema"])
        if made_by != "keras_exitens":
            raise ValueError(f"made_by is {made_by!r}")
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise checks.error(
            f"{str(folder)!r} is not an export, or its manifest is damaged.",
            expected=f"a folder that EarlyExit.export wrote, with {MANIFEST}",
            received=f"{type(cause).__name__}: {cause}",
            fix="export the network again, or copy the whole folder",
        ) from cause
    if schema > SCHEMA:
        raise checks.error(
            f"The export in {str(folder)!r} is newer than this runtime.",
            expected=f"a manifest of schema {SCHEMA} or older",
            received=f"schema {schema}, by the runtime in {pathlib.Path(__file__).parent}",
            fix=f"use the {PACKAGE} in that folder, or a newer keras_exitens",
        )
    return manifest


def check_file(path: pathlib.Path, stage: dict[str, typing.Any]) -> None:
    """Raises unless a stage is to the byte what was exported."""
    content = path.read_bytes() if path.is_file() else b""
    if (len(content), hashlib.sha256(content).hexdigest()) != (stage["bytes"], stage["sha256"]):
        raise checks.error(
            f"The stage {path.name!r} of the export in {str(path.parent)!r} is damaged or missing.",
            expected=f"{stage['bytes']} bytes with sha256 {stage['sha256']}",
            received=f"{len(content)} bytes" if path.is_file() else "no such file",
            fix="copy the file again, or export the network again",
        )
