"""Drawing: fonts, sizes, deterministic files, and the figure that shows itself in a notebook."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as _MatplotlibFigure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox
from PIL import Image

#: Width of a figure in inches: the text block of the report, so that fonts keep their size.
WIDTH = 6.3

#: Resolution of the PNG in a notebook, and of the PNG file, in dots an inch.
NOTEBOOK_DPI, FILE_DPI = 110, 220

#: What every figure is drawn with. Names in records are data: a ``$`` in them is no mathematics.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "pdf.compression": 9,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
}


class Figure(_MatplotlibFigure):
    """A matplotlib figure that shows itself in a notebook as PNG and PDF, whatever the backend is."""

    alternative = "figure"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._files: dict[tuple[str, int], bytes] = {}

    def png(self, dpi: int = NOTEBOOK_DPI) -> bytes:
        """The figure as PNG; the same figure gives the same bytes. It must not be changed afterwards.

        Args:
            dpi: dots an inch.
        """
        return self._saved("png", dpi, {"Software": None})

    def pdf(self) -> bytes:
        """The figure as PDF with embedded TrueType fonts and no date."""
        return self._saved("pdf", 72, {"CreationDate": None, "Creator": None, "Producer": None})

    def _saved(self, kind: str, dpi: int, metadata: dict[str, None]) -> bytes:
        """The file's content; drawn once, laid out once for all formats."""
        if (kind, dpi) not in self._files:
            buffer = io.BytesIO()
            with matplotlib.rc_context(STYLE):
                if not self._files:
                    self._lay_out()
                self.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
            self._files[kind, dpi] = buffer.getvalue()
        return self._files[kind, dpi]

    def _lay_out(self) -> None:
        """Place everything for good; rounded, since the solver's last bits follow addresses in memory."""
        self.draw_without_rendering()
        self.set_layout_engine("none")
        for part in self.subfigs:
            part.bbox_relative.set_points(part.bbox_relative.get_points().round(6))
        for ax in self.axes:
            ax.set_position(Bbox(ax.get_position(original=True).get_points().round(6)))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """PNG for HTML, PDF for LaTeX and Typst, words for a terminal (IPython's protocol)."""
        width, height = self.get_size_inches()
        pixels = {"width": round(96 * width), "height": round(96 * height)}
        data = {
            "image/png": base64.b64encode(_fewer_colors(self.png())).decode("ascii"),
            "application/pdf": base64.b64encode(self.pdf()).decode("ascii"),
            "text/plain": f"[{self.alternative}]",
        }
        return data, {"image/png": pixels}


def _fewer_colors(png: bytes) -> bytes:
    """A PNG with a palette of 256 colours: a third of the size, so that an executed notebook stays small."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@contextmanager
def drawing() -> Iterator[None]:
    """The style of the report's figures, for as long as one is drawn."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(height: float, *, width: float = WIDTH, alternative: str = "figure") -> Figure:
    """An empty figure whose parts make room for each other.

    Args:
        height: in inches.
        width: in inches.
        alternative: what stands for it in a terminal.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.alternative = alternative
    return figure


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure as PNG and PDF.

    Args:
        figure: what to save.
        folder: where; made when it is not there.
        stem: file name without ending.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{stem}.png", folder / f"{stem}.pdf"]
    files[0].write_bytes(figure.png(FILE_DPI))
    files[1].write_bytes(figure.pdf())
    return files


def plot_label(text: str, limit: int = 44) -> str:
    """A text from a record as matplotlib may show it: one line, bounded, never hidden from a legend.

    Args:
        text: a name or label.
        limit: most characters.
    """
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def percent_axis(axis: Any) -> None:
    """Write the ticks of an axis that holds fractions as percent.

    Args:
        axis: matplotlib's x or y axis.
    """
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.10g}"))
