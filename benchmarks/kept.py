"""Results of runs with fixed settings in a JSON file: a benchmark that was broken off goes on from there."""

import json
import sys

__all__ = ["keep", "stored"]


def stored(path, empty):
    """What the file holds already, or `empty`, a dict with `"settings"`; ends the script if these differ."""
    if not path.exists():
        return empty
    found = json.loads(path.read_text())
    if found["settings"] != empty["settings"]:
        sys.exit(f"{path} holds other settings, {found['settings']}: pass another --json")
    return found


def keep(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
