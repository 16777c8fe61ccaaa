"""The file of finished runs: one JSON line each, keyed by the settings, shared by several processes."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib

__all__ = ["Results", "key_of"]


def key_of(settings):
    """A short name for the settings of a run, a dict; the order of the entries does not matter."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Results:
    """Finished runs in a file of JSON lines, each a dict with at least `"settings"`.

    A process that is killed loses the run it was at and nothing else: a line that was written in part is
    passed over. A run that a living process has claimed is left to it; the claim ends with the process.

    Args:
        path: the file; it need not exist.
        claims: folder for the claims, on this machine.
    """

    def __init__(self, path, claims):
        self.path = pathlib.Path(path)
        name = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
        self.claims = pathlib.Path(claims) / name

    def read(self):
        """All finished runs, a dict from key to line."""
        if not self.path.exists():
            return {}
        found = {}
        for text in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                line = json.loads(text)
                found[key_of(line["settings"])] = line
        return found

    def append(self, line):
        """Adds a finished run, with one write, under a lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = end and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def claim(self, settings):
        """Whether this process may do the run: it is neither finished nor claimed by another one."""
        self.claims.mkdir(parents=True, exist_ok=True)
        key = key_of(settings)
        with open(self.claims / key, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield key not in self.read()
