"""Grids of images with captions: samples, augmented views, misclassified images. They need Pillow alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from fast_cifar.system.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

TILE = 128  # pixels: the square that an enlarged image is centred in
GAP = 16
MARGIN = 20
COLUMNS = 8
LINE = 20
FONT_SIZE = 13
ROOM = TILE + GAP - 6  # pixels for a line of a caption: just short of the next one
HEADING_SIZE = 20

BACKGROUND = "white"
INK = "#222222"
FAINT = "#777777"
ALARM = "#B84A00"  # a dark vermillion: told from INK by colour-blind eyes as well, and legible on white

# The font inside Pillow knows ASCII and little more; these know accents, Greek, Cyrillic and arrows.
FONT_FILES = ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf", "Arial.ttf")

CaptionLine = tuple[str, str]  # text, colour


def samples(path: str | Path, images: Tensor, names: Sequence[str], of: str = "Training images") -> None:
    """Writes a grid of images, each above the name of its class.

    Args:
        path: the PNG to write; its folder exists.
        images: uint8 [n, H, W, 3] on the CPU, n >= 0; some 40 fill a screen.
        names: n class names; those too long for their tile end in an ellipsis.
        of: whose images they are, for the heading.

    Raises:
        ValueError: there are not as many names as images.
    """
    font = _font(FONT_SIZE)
    captions = [[(_shorten(name, font, ROOM), INK)] for name in names]
    write_png(path, _grid(f"{of} and their labels", images, captions))


def misclassified(
    path: str | Path,
    images: Tensor,
    truths: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float],
    of: str = "images",
) -> None:
    """Writes a grid of images that the network got wrong, each with its caption "truth → prediction confidence %".

    Args:
        path: the PNG to write; its folder exists.
        images: uint8 [n, H, W, 3] on the CPU. With n = 0 the grid says that there are none.
        truths, predictions: n class names each.
        confidences: n probabilities of the predicted class, in [0, 1].
        of: whose images they are, for the heading.

    Raises:
        ValueError: the four do not have the same length.
    """
    captions = [
        _verdict(truth, prediction, confidence)
        for truth, prediction, confidence in zip(truths, predictions, confidences, strict=True)
    ]
    write_png(path, _grid(f"Misclassified {of}: truth → prediction, confidence", images, captions))


def augmented(
    path: str | Path, originals: Tensor, views: Tensor, names: Sequence[str], of: str = "Training images"
) -> None:
    """Writes one row for each image: the name of its class, the original, and the augmented image of each epoch.

    Args:
        path: the PNG to write; its folder exists.
        originals: uint8 [n, H, W, 3] on the CPU.
        views: uint8 [n, k, H, W, 3] on the CPU, of each original in epochs 1 to k.
        names: n class names; those too long for their column end in an ellipsis.
        of: whose images they are, for the heading.

    Raises:
        ValueError: originals, views and names do not have the same length.
    """
    font, heading_font = _font(FONT_SIZE), _font(HEADING_SIZE)
    heading = f"{plain(of)}, as they are and as each epoch augments them"
    labels = [_shorten(name, font, ROOM) for name in names]
    original_x = MARGIN + max((int(font.getlength(label)) for label in labels), default=0) + GAP
    columns = [original_x + TILE + 2 * GAP + epoch * (TILE + GAP) for epoch in range(views.shape[1])]
    columns_y = MARGIN + HEADING_SIZE + GAP
    top = columns_y + LINE + GAP // 2
    width = max([original_x, *columns][-1] + TILE, MARGIN + int(heading_font.getlength(heading)) + 1) + MARGIN
    height = top + max(len(originals), 1) * (TILE + GAP) - GAP + MARGIN

    canvas = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    _write(pen, (MARGIN, MARGIN), heading, heading_font)
    _write(pen, (original_x, columns_y), "original", font)
    for epoch, x in enumerate(columns, start=1):
        _write(pen, (x, columns_y), f"epoch {epoch}", font)
    for row, (original, its_views, label) in enumerate(zip(originals, views, labels, strict=True)):
        y = top + row * (TILE + GAP)
        pen.text((original_x - GAP, y + TILE // 2), label, fill=INK, font=font, anchor="rm")
        for x, image in zip([original_x, *columns], [original, *its_views], strict=True):
            _paste(canvas, image, x, y)
    write_png(path, canvas)


def write_png(path: str | Path | IO[bytes], image: Image.Image) -> None:
    """Writes a PNG to a binary file, or as a file that is complete or not there at all."""
    if isinstance(path, (str, Path)):
        with atomic_write(path) as file:
            image.save(file, format="PNG")
    else:
        image.save(path, format="PNG")


def plain(name: str) -> str:
    """The name with line breaks, control characters and undecodable bytes of a file name replaced by "?"."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _grid(heading: str, images: Tensor, captions: Sequence[Sequence[CaptionLine]]) -> Image.Image:
    """Images in rows of COLUMNS under a heading, each above the lines of its caption; "none" where there is none."""
    font, heading_font, heading = _font(FONT_SIZE), _font(HEADING_SIZE), plain(heading)
    columns = min(COLUMNS, max(len(images), 1))
    row_height = TILE + max(map(len, captions), default=1) * LINE + GAP
    top = MARGIN + HEADING_SIZE + GAP
    width = max(columns * (TILE + GAP) - GAP, int(heading_font.getlength(heading)) + 1) + 2 * MARGIN
    height = top + max(-(-len(images) // columns), 1) * row_height - GAP + MARGIN

    canvas = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    _write(pen, (MARGIN, MARGIN), heading, heading_font)
    if not captions:
        _write(pen, (MARGIN, top), "none", heading_font, FAINT)
    for index, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x = MARGIN + index % columns * (TILE + GAP)
        y = top + index // columns * row_height
        _paste(canvas, image, x, y)
        for number, (line, colour) in enumerate(lines):
            _write(pen, (x, y + TILE + 3 + number * LINE), line, font, colour)
    return canvas


def _verdict(truth: str, prediction: str, confidence: float) -> list[CaptionLine]:
    """The caption of a misclassified image; names are shortened, the confidence never is."""
    font = _font(FONT_SIZE)
    percent = f" {100 * confidence:.0f} %"
    room = ROOM - font.getlength(_known("→ ", font)) - font.getlength(percent)
    return [(_shorten(truth, font, ROOM), INK), (f"→ {_shorten(prediction, font, room)}{percent}", ALARM)]


def _paste(canvas: Image.Image, image: Tensor, x: int, y: int) -> None:
    """Centres an image in the tile whose corner is (x, y): whole multiples of its pixels, or shrunk if it is larger."""
    tile = Image.fromarray(image.numpy())
    factor = TILE // max(tile.size)
    if factor:
        tile = tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)
    else:
        tile.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    canvas.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: str = INK,
) -> None:
    """Writes one line of text whose top left corner is `corner`."""
    pen.text(corner, _known(text, font), fill=colour, font=font)


def _shorten(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The longest beginning of a name that fits into `width` pixels, with an ellipsis if it is not the whole name."""
    name = _known(plain(name), font)
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name.rstrip() + "…"


def _known(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text in letters that Pillow's own font has: é becomes e, → becomes >, an unknown letter ?."""
    if font.getname()[0] != "Aileron":
        return text
    letters = unicodedata.normalize("NFKD", text.replace("→", ">").replace("…", "\0"))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return bare.encode("ascii", "replace").decode().replace("\0", "…")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font of this machine that knows many letters, else the one inside Pillow."""
    for file in FONT_FILES:
        try:
            return ImageFont.truetype(file, size)
        except OSError:
            continue
    return ImageFont.load_default(size=size)
