"""Page: one HTML file with all that it shows inside, for wide and narrow windows, light and dark, and paper.

It loads nothing and may load nothing: its own policy forbids it, whatever a name from outside holds.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING

from bioxfer.errors import UsageError
from bioxfer.output import publish
from bioxfer.quoting import to_html
from bioxfer.report.drawing import need_matplotlib
from bioxfer.report.svg import VARIABLES, drawing_style, figure_to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Page", "check_report"]

_SUFFIXES = (".html", ".htm")

_LIGHT = {
    "ink": "#1b1f24", "paper": "#ffffff", "soft": "#e3e3e3", "grey": "#8a8f98", "mute": "#5b626c",
    "card": "#f5f6f8",
    "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#c26195", "c4": "#d08f00", "c5": "#3d9bd6",
    "c6": "#1b1f24", "s0": "#440154", "s1": "#3b528b", "s2": "#21918c", "s3": "#4fb04f", "s4": "#c9a800",
}  # fmt: skip
# Okabe and Ito's hues, lighter, so that thin lines are seen on a dark ground
_DARK = {
    "ink": "#e6e8eb", "paper": "#15181c", "soft": "#343a42", "grey": "#8d949e", "mute": "#a5adb8",
    "card": "#1e2228",
    "c0": "#4aa8e0", "c1": "#f08a4b", "c2": "#3cc79c", "c3": "#e0a0c4", "c4": "#f0b840", "c5": "#8fd0f5",
    "c6": "#e6e8eb", "s0": "#b083d6", "s1": "#7f9be0", "s2": "#3fb8b0", "s3": "#7ed67e", "s4": "#f2d544",
}  # fmt: skip
assert set(VARIABLES.values()) <= set(_LIGHT) == set(_DARK)


def _variables(values: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in values.items())


_STYLE = f"""
:root{{color-scheme:light dark;{_variables(_LIGHT)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
main{{max-width:1120px;margin:0 auto;padding:24px 20px 60px}}
h1{{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}}
h2{{font-size:19px;margin:40px 0 12px;padding-top:12px;border-top:1px solid var(--soft);
overflow-wrap:anywhere}}
h3{{font-size:16px;margin:24px 0 8px}}
p{{margin:6px 0;max-width:80ch}}
.lead{{color:var(--mute);margin:0 0 20px;overflow-wrap:anywhere}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,170px),1fr));
gap:12px;margin:16px 0}}
.tile{{background:var(--card);border-radius:8px;padding:12px 14px}}
.tile b{{display:block;font-size:19px;line-height:1.3;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}}
.tile span{{font-size:13px;color:var(--mute)}}
.figures{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:28px 32px;
margin:16px 0}}
figure{{margin:0;min-width:0;break-inside:avoid}}
figure.broad{{grid-column:1/-1}}
figcaption{{font-size:14px;margin-bottom:6px;overflow-wrap:anywhere}}
svg.figure{{display:block;width:100%;height:auto;max-width:520px}}
figure.broad{{overflow-x:auto}}
figure.broad svg.figure{{max-width:none;min-width:620px}}
svg.figure *{{stroke-linejoin:round;stroke-linecap:butt}}
svg.figure text{{font-family:system-ui,sans-serif}}
.wide{{overflow-x:auto;margin:12px 0}}
table{{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}}
caption{{text-align:left;padding:4px 0;color:var(--mute);white-space:nowrap}}
th,td{{text-align:left;vertical-align:top;padding:4px 14px 4px 0;border-bottom:1px solid var(--soft)}}
th{{font-weight:600}}
td{{overflow-wrap:anywhere}}
.wide td,.wide th{{overflow-wrap:normal}}
.n{{text-align:right;white-space:nowrap}}
.facts th{{white-space:nowrap;font-weight:400;color:var(--mute)}}
ul{{padding-left:20px}}
li{{overflow-wrap:anywhere}}
nav{{font-size:14px;margin:12px 0}}
nav{{display:flex;flex-wrap:wrap;gap:2px 14px}}
nav a{{color:var(--c0)}}
details{{margin:16px 0}}
summary{{cursor:pointer}}
pre{{overflow-x:auto;background:var(--card);padding:12px;border-radius:8px;font-size:12px;white-space:pre-wrap;
overflow-wrap:anywhere}}
#tip{{position:fixed;z-index:9;pointer-events:none;display:none;max-width:320px;background:var(--ink);
color:var(--paper);font-size:13px;line-height:1.4;padding:5px 9px;border-radius:6px;white-space:pre-line;
overflow-wrap:anywhere}}
@media (max-width:600px){{main{{padding:16px 14px 40px}}
.facts th,.facts td{{display:block;border:0;padding:0}}
.facts td{{padding-bottom:8px}}}}
@media print{{body{{font-size:12px}}main{{max-width:none;padding:0}}h2,h3{{break-after:avoid}}
tr{{break-inside:avoid}}#tip,nav{{display:none}}.wide{{overflow:visible}}}}
"""

# What a browser would show of a <title> after a while, at once; without it the titles stay as they are.
_SCRIPT = """
const tip = document.getElementById("tip");
function show(event) {
  const part = event.target.closest ? event.target.closest("[data-tip]") : null;
  if (!part) { tip.style.display = "none"; return; }
  tip.textContent = part.dataset.tip;
  tip.style.display = "block";
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18;
  const y = below + tip.offsetHeight > innerHeight - 8 ? event.clientY - tip.offsetHeight - 10 : below;
  tip.style.left = Math.max(8, x) + "px";
  tip.style.top = Math.max(8, y) + "px";
}
for (const title of document.querySelectorAll("svg.figure title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.style.display = "none"; }, {passive: true});
"""

_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'"


class Page:
    """A page that grows from its top to its foot.

    Parameters
    ----------
    title : str
        Of the page.
    lead : str, optional
        A line under it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{to_html(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{to_html(lead)}</p>')
        self._figures = 0
        self._row: list[str] = []  # figures that stand side by side

    def heading(self, text: str, *, anchor: str = "") -> None:
        """Begin a section."""
        place = f' id="{to_html(anchor)}"' if anchor else ""
        self.add(f"<h2{place}>{to_html(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.add(f"<p>{to_html(text)}</p>")

    def tiles(self, numbers: dict[str, object]) -> None:
        """Add what matters most, each number with its name."""
        tiles = "".join(
            f'<div class="tile"><b>{to_html(value)}</b><span>{to_html(name)}</span></div>'
            for name, value in numbers.items()
        )
        self.add(f'<div class="tiles">{tiles}</div>')

    def links(self, places: dict[str, str]) -> None:
        """Add a line of links to sections: anchors and what they are called."""
        links = "".join(f'<a href="#{to_html(a)}">{to_html(name)}</a>' for a, name in places.items())
        self.add(f"<nav>{links}</nav>")

    def details(self, summary: str, html: str) -> None:
        """Add a piece of HTML, in which all is escaped, that a reader may open."""
        self.add(f"<details><summary>{to_html(summary)}</summary>{html}</details>")

    def add(self, html: str) -> None:
        """Add a piece of HTML in which all is escaped."""
        self._end_row()
        if html:
            self._parts.append(html)

    def draw(
        self,
        name: str,
        plot: Callable[[Axes], object],
        *,
        size: tuple[float, float] = (4.8, 4.0),
        note: str = "",
        broad: bool | None = None,
    ) -> bool:
        """Add a figure beside the last one.

        Parameters
        ----------
        name : str
            Its kind, in lower case and with hyphens.
        plot : callable
            Draws into axes and gives them their title, which becomes the caption.
        size : tuple of float
            Inches; a figure broader than twice its height takes the whole width.
        note : str, optional
            More of the caption.
        broad : bool, optional
            Whether it takes the whole width, whatever its size.

        Returns
        -------
        bool
            False if the data hold nothing to draw; nothing is then added.
        """
        from matplotlib.figure import Figure

        with drawing_style():
            figure = Figure(figsize=size, layout="constrained")
            ax = figure.add_subplot()
            try:
                plot(ax)
            except UsageError:
                return False
            title = ax.get_title().replace(r"\$", "$").replace("\n", "; ")
            ax.set_title("")
            self._figures += 1
            svg = figure_to_svg(figure, key=f"f{self._figures}", title=title)
        broad = size[0] > 2 * size[1] if broad is None else broad
        kind = ' class="broad"' if broad else ""
        caption = to_html(f"{title}. {note}" if note else title)
        self._row.append(
            f'<figure{kind} data-figure="{to_html(name)}"><figcaption>{caption}</figcaption>{svg}</figure>'
        )
        return True

    def _end_row(self) -> None:
        if self._row:
            self._parts.append(f'<div class="figures">{"".join(self._row)}</div>')
            self._row = []

    def html(self) -> str:
        """Return the whole page."""
        self._end_row()
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{to_html(self.title)}</title><style>{_STYLE}</style></head>\n"
            f'<body><main>{"".join(self._parts)}</main><div id="tip"></div>'
            f"<script>{_SCRIPT}</script></body></html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, which appears whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written; what was there before stays.
        """
        with publish(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")


def check_report(path: str | os.PathLike[str]) -> None:
    """Refuse a file that no report can be written to, before the work starts.

    Raises
    ------
    UsageError
        The suffix is none of a page's.
    MissingExtraError
        matplotlib is not installed.
    """
    if PurePath(path).suffix.lower() not in _SUFFIXES:
        raise UsageError(f"a report is a {', '.join(_SUFFIXES)} file, not {str(path)!r}; change the suffix")
    need_matplotlib()
