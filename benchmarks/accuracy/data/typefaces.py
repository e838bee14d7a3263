"""Characters rendered from typefaces: four domains of one label space, split by family."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.accuracy.data import Bytes, Images, ImageSet, MissingDataError

# Families by the beginnings of their files' names; the first list trains, the second tests.
DOMAINS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "serif": (
        ("DejaVuSerif", "LiberationSerif", "Caladea", "FreeSerif", "LinLibertine_R", "Junicode"),
        ("AveriaSerifGWF", "Quattrocento", "LindenHill", "Vollkorn"),
    ),
    "sans": (
        ("DejaVuSans-", "LiberationSans-", "Carlito", "FreeSans", "Lato-", "Cabin-", "Dosis"),
        ("OpenSans-", "Cantarell", "Play-", "Quicksand"),
    ),
    "mono": (
        ("DejaVuSansMono", "LiberationMono", "FreeMono", "Hermit", "FiraCode", "JetBrainsMono"),
        ("FantasqueSansMono", "Inconsolata", "agave", "mononoki"),
    ),
    "handwriting": (
        (
            *("Breip", "BecauseWe", "ComicNeue", "DancingScript", "Ecolier", "femkeklaver"),
            *("dkg", "Kristi", "LeckerliOne"),
        ),
        ("Humor-Sans", "KaushanScript", "Lobster", "Rufscript"),
    ),
}
PACKAGES = """fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-crosextra-caladea
    fonts-crosextra-carlito fonts-freefont-ttf fonts-linuxlibertine fonts-junicode
    fonts-averia-serif-gwf fonts-quattrocento fonts-lindenhill fonts-vollkorn fonts-lato fonts-cabin
    fonts-dosis fonts-open-sans fonts-cantarell fonts-play fonts-quicksand fonts-hermit
    fonts-firacode fonts-jetbrains-mono fonts-fantasque-sans fonts-inconsolata fonts-agave
    fonts-mononoki fonts-breip fonts-bwht fonts-comic-neue fonts-dancingscript fonts-ecolier-court
    fonts-femkeklaver fonts-dkg-handwriting fonts-kristi fonts-leckerli-one fonts-humor-sans
    fonts-kaushanscript fonts-lobster fonts-rufscript""".split()
FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
VARIABLE = "TYPEFACES"
FILES = 6  # of a family: some have dozens of weights
TRAIN, TEST = 12000, 2600  # images
SIZE, CANVAS = 28, 56


def load(domains: Sequence[str], characters: str, folder: Path) -> ImageSet:
    """Images of ``characters`` in the typefaces of some domains, rendered once and then kept.

    Raises:
        MissingDataError: a family has no file in the font folders.
    """
    kept = folder / "typefaces" / f"{'-'.join(domains)}-{len(characters)}.npz"
    if not kept.exists():
        _render(domains, characters, kept)
    with np.load(kept) as arrays:
        train = Images(arrays["train"], arrays["train_labels"])
        return ImageSet(train, Images(arrays["test"], arrays["test_labels"]))


def _render(domains: Sequence[str], characters: str, kept: Path) -> None:
    found = _files()
    parts = {}
    for number, (part, total) in enumerate((("train", TRAIN), ("test", TEST))):
        families = [name for domain in domains for name in DOMAINS[domain][number]]
        random = np.random.default_rng((number, len(characters), *map(len, domains)))
        labels = np.arange(total) % len(characters)
        images = np.empty((total, SIZE, SIZE), np.uint8)
        for k, label in enumerate(labels):
            files = found[families[int(random.integers(len(families)))]]
            file = files[int(random.integers(len(files)))]
            images[k] = character(file, characters[int(label)], random)
        order = random.permutation(total)
        parts[part] = images[order]
        parts[f"{part}_labels"] = labels[order].astype(np.int64)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".part.npz")
    np.savez_compressed(partial, allow_pickle=False, **parts)
    os.replace(partial, kept)


def _files() -> dict[str, list[Path]]:
    given = os.environ.get(VARIABLE)
    places = (Path(given),) if given else FOLDERS
    files = sorted(
        file
        for place in places
        for file in place.rglob("*")
        if file.suffix in (".ttf", ".otf") and "variable" not in str(file)
    )
    stems = {family for pair in DOMAINS.values() for part in pair for family in part}
    found = {
        stem: list({f.name: f for f in files if f.name.lower().startswith(stem.lower())}.values())
        for stem in sorted(stems)
    }
    missing = [stem for stem, own in found.items() if not own]
    if missing:
        raise MissingDataError(
            f"typefaces {', '.join(missing)} not found in {', '.join(map(str, places))}. Get them "
            f"from Debian's packages {' '.join(PACKAGES)}, or name a folder of font files in the "
            f"environment variable {VARIABLE}."
        )
    return {stem: own[:: max(len(own) // FILES, 1)][:FILES] for stem, own in found.items()}


def character(file: Path, text: str, random: np.random.Generator) -> Bytes:
    """One character, white on black, at a random size, place, slant and sharpness."""
    font = ImageFont.truetype(str(file), int(random.integers(30, 42)))
    image = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(image).text((CANVAS / 2, CANVAS / 2), text, fill=255, font=font, anchor="mm")
    angle, shear = random.uniform(-0.2, 0.2), random.uniform(-0.25, 0.25)
    shift = random.uniform(-4, 4, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1.0, shear], [0.0, 1.0]])
    middle = np.full(2, CANVAS / 2)
    offset = middle - linear @ (middle + shift)
    matrix = (*linear[0], offset[0], *linear[1], offset[1])
    image = image.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.6)))
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    noisy = small * random.uniform(0.5, 1.0) + random.normal(0, random.uniform(2, 25), small.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)
