"""Drawings: matplotlib's SVG, made fit for a page without inline styles that knows dark and light, and is read aloud.

What matplotlib writes as `style="..."` becomes a class, so that the page's policy can forbid inline styles; identifiers
are of the figure that they are in; colours are the style sheet's. The settings are matplotlib's own defaults, whatever
the user's are, and nothing random or of the clock goes in: the same calls give the same text.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ckpt_tools.pages.blocks import Drawing
from ckpt_tools.pages.colours import colour_of, with_variables
from ckpt_tools.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Mark", "add_box", "add_canvas", "add_text", "draw"]

_DPI = 72  # a point is a pixel
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_SHORTHAND = re.compile(r"(font: (?:[a-z0-9]+ )*[\d.]+px) [^;]*")
_NO_ROTATION = re.compile(r"rotate\(-?0[ )]")


@dataclass(frozen=True, slots=True)
class Mark:
    """What an element of a drawing stands for.

    Attributes:
        title: What a pointer that rests on it is told.
        data: Names and values of `data-` attributes.
    """

    title: str
    data: Mapping[str, str]


def draw(
    key: str, width: int, height: int, paint: Callable[[Figure], None], marks: Mapping[str, Mark] | None = None
) -> Drawing:
    """What a function paints.

    Args:
        key: The figure's name among all of its page.
        width: In CSS pixels.
        height: In CSS pixels.
        paint: Is given an empty figure of matplotlib's; it has to use `colour_of`.
        marks: What artists stand for, by the `gid` that the function gives them.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "pet-surgery",
                "font.size": 11,
                "text.color": colour_of("ink"),
                "axes.edgecolor": colour_of("muted"),
                "axes.labelcolor": colour_of("ink"),
                "xtick.color": colour_of("ink"),
                "ytick.color": colour_of("ink"),
                "grid.color": colour_of("line"),
            }
        )
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasSVG(figure)
        paint(figure)
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Creator": None, "Date": None, "Format": None, "Type": None},
        )
    return _adapted(buffer.getvalue(), key, width, height, marks or {})


def add_canvas(figure: Figure) -> Axes:
    """Axes over all of a figure, in pixels from its upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, figure.get_figwidth() * _DPI)
    axes.set_ylim(figure.get_figheight() * _DPI, 0)
    axes.axis("off")
    return axes


def add_text(
    axes: Axes, x: float, y: float, text: str, *, colour: str = "ink", align: str = "center", size: float = 11
) -> None:
    """Text as it stands: nothing in it is a formula."""
    axes.text(
        x,
        y,
        printable(text),
        color=colour_of(colour),
        horizontalalignment=align,
        verticalalignment="center_baseline",
        fontsize=size,
        parse_math=False,
    )


def add_box(
    axes: Axes,
    corner: tuple[float, float],
    size: tuple[float, float],
    fill: str | None,
    edge: str | None = None,
    gid: str = "",
) -> None:
    """A rectangle."""
    from matplotlib.patches import Rectangle

    box = Rectangle(
        corner,
        *size,
        facecolor="none" if fill is None else colour_of(fill),
        edgecolor="none" if edge is None else colour_of(edge),
        linewidth=1,
        clip_on=False,
    )
    if gid:
        box.set_gid(gid)
    axes.add_patch(box)


def _adapted(svg: bytes, key: str, width: int, height: int, marks: Mapping[str, Mark]) -> Drawing:
    root = ElementTree.fromstring(svg)
    rules: dict[str, str] = {}
    referenced = _references(root)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}style", f"{_SVG}metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = _stripped(element.text), _stripped(element.tail)
        _adapt_style(element, rules)
        _adapt_links(element, key, referenced, marks)
    body = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return Drawing(body, rules, width, height)


def _references(root: ElementTree.Element) -> set[str]:
    found = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            found.update(_REFERENCE.findall(value))
            if name == _LINK:
                found.add(value.removeprefix("#"))
    return found


def _stripped(text: str | None) -> str | None:
    """Line breaks between elements are of no use to anybody."""
    return text if text and text.strip() else None


def _adapt_style(element: ElementTree.Element, rules: dict[str, str]) -> None:
    style = element.attrib.pop("style", "")
    if not style:
        return
    style = _SHORTHAND.sub(r"\1 var(--sans)", _FAMILY.sub("", style))
    style = with_variables(style).strip("; ")
    if style:
        name = "d" + hashlib.blake2b(style.encode(), digest_size=4).hexdigest()
        rules[name] = style
        element.set("class", name)


def _adapt_links(element: ElementTree.Element, key: str, referenced: set[str], marks: Mapping[str, Mark]) -> None:
    for name, value in list(element.attrib.items()):
        if _REFERENCE.search(value):
            element.set(name, _REFERENCE.sub(rf"url(#{key}-\1)", value))
        elif name == _LINK:
            del element.attrib[name]
            element.set("href", f"#{key}-{value.removeprefix('#')}")
        elif name == "transform" and _NO_ROTATION.match(value):
            del element.attrib[name]
        elif name == "d":
            element.set(name, " ".join(value.split()))
    identifier = element.attrib.pop("id", "")
    if identifier in referenced:
        element.set("id", f"{key}-{identifier}")
    if identifier in marks:
        mark = marks[identifier]
        for name, value in mark.data.items():
            element.set(f"data-{name}", printable(value))
        title = ElementTree.Element("title")
        title.text = printable(mark.title)
        element.insert(0, title)
