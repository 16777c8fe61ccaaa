"""Pictures of the 94 printable ASCII characters in many faces: a many-class set that needs no download.

The faces come from Debian's font packages, listed in glyph_fonts.txt. Pictures are 28×28 grey, turned by up
to ten degrees. All faces of a family stand in one part only: a network is tested on type it has never seen.

    apt-get install --no-install-recommends $(cat benchmarks/glyph_fonts.txt)
    python benchmarks/glyphs.py                        # renders the set, once
    python benchmarks/glyphs.py --sheet sheet.png      # and shows some of it

A family is a set of faces that share a folder or the family name in the file: a typeface that two packages
ship counts once. At most 16 faces of a family are taken. A face is left out if a character is missing or
empty, or if more than three characters look like another one (capitals for small letters, for instance).
"""

import argparse
import collections
import os
import pathlib
import string
import zlib

import numpy as np

PACKAGES = pathlib.Path(__file__).with_name("glyph_fonts.txt")
FONTS = pathlib.Path("/usr/share/fonts")
CHARACTERS = "".join(c for c in string.printable if c.isprintable() and c != " ")
SIZE = 28
DEGREES = 10
FACES = 16  # of a family, at most
ALIKE = 3  # characters of a face that look like another one, at most
SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}  # of the families

_SCALE = 3  # drawn so much larger, then reduced
_MARGIN = 2  # pixels at each side that upright characters leave free
_FORMAT = 1  # of the cache: another number, another file


def cache_folder():
    """Where rendered pictures are kept: `KERAS_EXITENS_CACHE`, or a folder of the user's cache."""
    return pathlib.Path(os.environ.get("KERAS_EXITENS_CACHE") or "~/.cache/keras_exitens").expanduser()


def load(cache=None):
    """The set, rendered at the first call and read from the cache afterwards.

    Args:
        cache: folder of the cache; default `cache_folder()`.

    Returns:
        A dict from `"train"`, `"validation"`, `"calibration"`, `"test"` to a pair of arrays: uint8 images
        `(N, 28, 28, 1)` and int32 labels `(N,)`, indices into `CHARACTERS`.

    Raises:
        FileNotFoundError: the fonts are not installed.
    """
    stored = _stored(cache)
    part_of_image = stored["part"][stored["face"]]
    found = {}
    for index, part in enumerate(SHARES):
        rows = part_of_image == index
        found[part] = stored["images"][rows][..., None], stored["labels"][rows].astype(np.int32)
    return found


def _stored(cache=None):
    path = (pathlib.Path(cache) if cache else cache_folder()) / f"glyphs-{_FORMAT}.npz"
    if not path.exists():
        made = render(find_faces())
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(unfinished, **made)
        os.replace(unfinished, path)
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def find_faces(folder=FONTS):
    """The font files under a folder, a list of `(path, folder name, family name)` in a fixed order.

    A file that stands there twice, linked or copied, is taken once.
    """
    from PIL import ImageFont

    seen, faces = set(), []
    for path in sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix.lower() in (".otf", ".ttf")):
        content = zlib.crc32(path.read_bytes())
        if content in seen:
            continue
        seen.add(content)
        try:
            family = ImageFont.truetype(path, 16).getname()[0]
        except (OSError, ValueError):
            continue
        faces.append((path, path.parent.name, family or path.stem))
    return faces


def families(faces):
    """The family of each face, an int: faces with a folder or a family name in common are of one family.

    Args:
        faces: list of `(path, folder name, family name)`.

    Returns:
        A list of int, numbered in the order of the faces.
    """
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for _, folder, family in faces:
        parent[root(("folder", folder))] = root(("name", family.casefold()))
    numbers = {}
    return [numbers.setdefault(root(("folder", folder)), len(numbers)) for _, folder, _ in faces]


def split(count, seed=0):
    """The part of each of `count` families, an int array: indices into `SHARES`."""
    order = np.random.RandomState(seed).permutation(count)
    parts = np.empty(count, np.int8)
    bounds = np.cumsum([round(share * count) for share in SHARES.values()][:-1])
    for index, members in enumerate(np.split(order, bounds)):
        parts[members] = index
    return parts


def render(faces):
    """Renders every usable face.

    Args:
        faces: as `find_faces` gives them.

    Returns:
        A dict of arrays: `images` uint8 `(N, 28, 28)`, `labels` and `face` `(N,)`, and for each face its
        `path`, `family` and `part`.

    Raises:
        FileNotFoundError: there are too few faces.
    """
    images, kept, taken, seen = [], [], collections.Counter(), set()
    for (path, _, _), family in zip(faces, families(faces), strict=True):
        upright = draw_face(path) if taken[family] < FACES else None
        # The Latin letters of one face may stand in many files, for other scripts or under other names.
        if upright is None or (look := b"".join(p.reduce(_SCALE).tobytes() for p in upright)) in seen:
            continue
        seen.add(look)
        taken[family] += 1
        images.append(np.stack([turned(picture, path, number) for number, picture in enumerate(upright)]))
        kept.append((str(path), family))
    if len(taken) < 10:
        raise FileNotFoundError(
            f"{FONTS} holds {len(taken)} usable font families, too few for a data set. Install Debian's font "
            f"packages: apt-get install --no-install-recommends $(cat {PACKAGES})"
        )
    numbers = {family: number for number, family in enumerate(taken)}
    family = np.array([numbers[f] for _, f in kept], np.int16)
    return {
        "images": np.concatenate(images),
        "labels": np.tile(np.arange(len(CHARACTERS), dtype=np.uint8), len(kept)),
        "face": np.repeat(np.arange(len(kept), dtype=np.int16), len(CHARACTERS)),
        "path": np.array([path for path, _ in kept]),
        "family": family,
        "part": split(len(numbers))[family],
    }


def draw_face(path):
    """The characters of one face, upright: a list of large Pillow images, or `None` for an unusable face.

    All characters share one scale and one baseline: a comma stays low, an apostrophe high, an o small.
    """
    from PIL import Image, ImageDraw, ImageFont

    inner = (SIZE - 2 * _MARGIN) * _SCALE
    try:
        font = ImageFont.truetype(path, inner, layout_engine=ImageFont.Layout.BASIC)
        boxes = np.array([font.getbbox(c, anchor="ls") for c in CHARACTERS])
        widest, top, bottom = (boxes[:, 2] - boxes[:, 0]).max(), boxes[:, 1].min(), boxes[:, 3].max()
        largest = max(widest, bottom - top)
        if largest <= 0 or (boxes[:, 2] <= boxes[:, 0]).any() or (boxes[:, 3] <= boxes[:, 1]).any():
            return None
        factor = inner / largest
        font = ImageFont.truetype(path, max(8, int(inner * factor)), layout_engine=ImageFont.Layout.BASIC)
        missing = bytes(font.getmask("\U000effff"))
        if any(bytes(font.getmask(c)) == missing for c in CHARACTERS):
            return None
    except (OSError, ValueError):
        return None
    canvas = SIZE * _SCALE
    baseline = (canvas - (top + bottom) * factor) / 2
    pictures = []
    for character in CHARACTERS:
        picture = Image.new("L", (canvas, canvas))
        left, _, right, _ = font.getbbox(character, anchor="ls")
        ImageDraw.Draw(picture).text(
            ((canvas - left - right) / 2, baseline), character, fill=255, font=font, anchor="ls"
        )
        pictures.append(picture)
    small = {picture.reduce(_SCALE).tobytes() for picture in pictures}
    if bytes(SIZE * SIZE) in small or len(small) < len(CHARACTERS) - ALIKE:
        return None
    return pictures


def turned(picture, path, number):
    """A large picture turned and reduced, uint8 `(28, 28)`; the angle depends on file and character alone."""
    from PIL import Image

    key = zlib.crc32(f"{pathlib.Path(path).name} {number}".encode())
    angle = float(np.random.RandomState(key).uniform(-DEGREES, DEGREES))
    return np.asarray(picture.rotate(angle, Image.Resampling.BICUBIC).reduce(_SCALE))


def contact_sheet(stored, path, rows=24, columns=40, seed=0):
    """Writes a PNG of pictures drawn at random from each part, the parts one below the other."""
    from PIL import Image

    rng = np.random.RandomState(seed)
    part_of_image = stored["part"][stored["face"]]
    lines = []
    for part in range(len(SHARES)):
        chosen = rng.choice(np.flatnonzero(part_of_image == part), rows // len(SHARES) * columns)
        cells = stored["images"][chosen].reshape(-1, columns, SIZE, SIZE)
        lines += [np.concatenate(list(line), axis=1) for line in cells]
        lines.append(np.full((4, columns * SIZE), 128, np.uint8))
    Image.fromarray(np.concatenate(lines)).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", help="folder of the rendered set (default: ~/.cache/keras_exitens)")
    parser.add_argument("--sheet", help="file for a picture of some of it")
    args = parser.parse_args()
    stored = _stored(args.cache)
    print(f"{len(stored['images']):,} pictures, {len(CHARACTERS)} characters")
    for index, part in enumerate(SHARES):
        faces = stored["part"] == index
        count = len(set(stored["family"][faces]))
        print(f"  {part:12} {faces.sum():5} faces of {count:4} families")
    if args.sheet:
        contact_sheet(stored, args.sheet)


if __name__ == "__main__":
    main()
