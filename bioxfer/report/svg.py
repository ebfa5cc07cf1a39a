"""SVG: a figure as a part of a page, in the page's colours, with text that stays text."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from bioxfer.quoting import printable
from bioxfer.report.drawing import COLOURS, GREY, SOFT, hovers
from bioxfer.report.maps import STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["VARIABLES", "drawing_style", "figure_to_svg"]

_INK = "#123456"  # a colour of no figure's, so that it can be told from theirs

VARIABLES = {
    _INK: "ink",
    "#ffffff": "paper",
    SOFT: "soft",
    GREY: "grey",
    **{colour.lower(): f"c{number}" for number, colour in enumerate(COLOURS)},
    **{colour: f"s{number}" for number, colour in enumerate(STEPS)},
}
"""The page's variable in place of each colour of a figure."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_INSIDE = re.compile(r"url\(#([^)]+)\)")
_PARTS = {"use", "path"}
# of text, of which a page has a font of its own
_FONT = re.compile(r"font(?:-family|-style|-variant|-weight|-stretch)?:[^;]*;?\s*")
_SIZE = re.compile(r"font(?:-size)?:[^;]*?(\d+(?:\.\d+)?)px")


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """Draw figures for a page while the block lasts: small, and in colours that it can change."""
    from matplotlib import rc_context

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **dict.fromkeys(inks, _INK),
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "legend.fontsize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        yield


def figure_to_svg(figure: Figure, *, key: str, title: str) -> str:
    """Turn a figure drawn in `drawing_style` into an ``<svg>`` element, the same for the same figure.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What is drawn.
    key : str
        Letters and digits before all ids in it, its own on the page.
    title : str
        What it shows, for who cannot see it.
    """
    from matplotlib import rc_context

    texts: dict[str, list[str]] = {}
    for artist in figure.findobj(lambda artist: hovers(artist) is not None):
        name = f"hover{len(texts)}"
        texts[name] = hovers(artist) or []
        artist.set_gid(name)
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": key}), warnings.catch_warnings():
        # the reader's browser has the letters that matplotlib's font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _clean(root, key)
    for group in root.iter("g"):
        if (said := texts.get(group.get("id", "").removeprefix(f"{key}-"))) is not None:
            _add_titles(group, said)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": f"0 0 {width} {height}", "class": "figure", "role": "img", "aria-label": printable(title)}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _clean(root: ElementTree.Element, key: str) -> None:
    """Take out what a page has no use for, and make ids and colours the page's own."""
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            name = name.rpartition("}")[2]
            if name == "id":
                value = f"{key}-{value}"
            elif name == "href":
                value = f"#{key}-{value.removeprefix('#')}"
            else:
                value = _INSIDE.sub(rf"url(#{key}-\1)", value)
                value = _COLOUR.sub(_themed, value)
                if name == "style" and element.tag == "text":
                    size = _SIZE.search(value)
                    value = _FONT.sub("", value) + (f"; font-size: {size.group(1)}px" if size else "")
            element.set(name, value)
        if element.text is not None:
            element.text = printable(element.text)


def _themed(found: re.Match[str]) -> str:
    name = VARIABLES.get(found.group().lower())
    return found.group() if name is None else f"var(--{name})"


def _add_titles(group: ElementTree.Element, texts: list[str]) -> None:
    """Put a text into each part that is drawn, in their order; parts inside <defs> are only used."""
    defined = {id(part) for defs in group.iter("defs") for part in defs.iter()}
    parts = [part for part in group.iter() if part.tag in _PARTS and id(part) not in defined]
    for part, text in zip(parts, texts, strict=True):
        title = ElementTree.SubElement(part, "title")
        title.text = printable(text)
