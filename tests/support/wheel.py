"""Builds the sdist and, from it, the wheel; installs the wheel alone in a new environment and tries it there.

    python tests/support/wheel.py                 # about three minutes, 2.5 GB for as long as it runs
    python tests/support/wheel.py --keep dist     # leaves both files in that folder
    python tests/support/wheel.py --contents      # builds, and looks at what is in them, only
    python tests/support/wheel.py --documents README.md docs/howto/*.md
                                          # then installs all extras, and runs the Python in these documents

`fresh_install.py` is what runs in the new environment. The versions of what the wheel needs are those of
`constraints.txt`.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).parents[2]


def run(*command, cwd):
    print("$", *map(str, command), flush=True)
    free = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run(list(map(str, command)), cwd=cwd, check=True, env=free)


def build(folder):
    """The sdist, and the wheel that is built from the sdist."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def sources(*patterns):
    """Files of the checkout, relative to it."""
    found = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    return {name for name in found if "__pycache__" not in name}


def check_contents(sdist, wheel):
    """The wheel holds the package and no more; the sdist what it takes to test and document it too."""
    package = sources("keras_exitens/**/*.py") | {"keras_exitens/py.typed"}
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
        licences = [name for name in file.namelist() if name.endswith("LICENSE")]
    assert inside == package, f"in one of them only: {sorted(inside ^ package)}"
    assert licences, "the wheel has no LICENSE"
    with tarfile.open(sdist) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    wanted = package | sources(
        *(f"{folder}/**/*.{kind}" for folder in ("benchmarks", "examples", "tests") for kind in ("py",)),
        *(f"docs/**/*.{kind}" for kind in ("md", "jsonl", "py", "css", "svg", "png")),
        *("LICENSE", "Makefile", "*.md", "*.toml", "constraints*.txt", "mkdocs.yml", "setup.py"),
    )
    assert wanted <= inside, f"not in the sdist: {sorted(wanted - inside)}"
    unwanted = [name for name in inside if "__pycache__" in name or name.startswith((".venv", "build/"))]
    assert not unwanted, unwanted
    print(f"{wheel.name}: {len(package)} files of the package; {sdist.name}: {len(inside)} entries")


def try_out(wheel, folder):
    """Installs the wheel in an environment of its own and runs `fresh_install.py` far from the checkout."""
    home = folder / "environment"
    venv.create(home, with_pip=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        ROOT / "constraints.txt",
        f"{wheel}[tensorflow]",
        cwd=folder,
    )
    place = folder / "elsewhere"
    place.mkdir()
    shutil.copy(ROOT / "tests" / "support" / "fresh_install.py", place)
    run(python, "fresh_install.py", cwd=place)
    return python, place


def run_documents(documents, wheel, python, place):
    """Runs the blocks of each document one after another, as a reader does, with all extras installed."""
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[all]", cwd=place)
    for document in documents:
        blocks = re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
        assert blocks, f"{document} has no Python"
        (place / f"{document.stem}.py").write_text("\n".join(blocks))
        run(python, f"{document.stem}.py", cwd=place)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the sdist and the wheel")
    parser.add_argument("--documents", type=pathlib.Path, nargs="+", default=[], help="Markdown files")
    parser.add_argument("--contents", action="store_true", help="build and look inside only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "dist").mkdir()
        sdist, wheel = build(folder / "dist")
        check_contents(sdist, wheel)
        if not args.contents:
            installed = try_out(wheel, folder)
            if args.documents:
                run_documents(args.documents, wheel, *installed)
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            for file in (sdist, wheel):
                shutil.copy(file, args.keep)


if __name__ == "__main__":
    main()
