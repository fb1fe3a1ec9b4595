"""Notebooks for the tests of the report: executed ones, built cell by cell."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

#: What a report must be able to print, in every format.
GLYPHS = "± × → ° − ≤ ≥ ≈ € é ß † µ α β Δ σ ∞ √ – — … ‰ ł č ✓ Ж"


def picture(text: str = "accuracy", *, vector: bool = True) -> dict[str, str]:
    """A small plot as IPython's inline backend leaves it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for offset, style in enumerate(("-", "--", ":")):
        axes.plot(range(10), [offset + 0.1 * x * x for x in range(10)], style, label=f"run {offset}")
    axes.set(xlabel="epoch", ylabel=text)
    axes.legend()
    data = {}
    for name, kind in (("image/png", "png"), ("application/pdf", "pdf")):
        if kind == "pdf" and not vector:
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=110)
        data[name] = base64.b64encode(buffer.getvalue()).decode()
    return {**data, "text/plain": "<Figure size 600x320>"}


def shown(data: dict[str, str], metadata: dict[str, Any] | None = None) -> Any:
    """An output that displays a MIME bundle."""
    return new_output("display_data", data=data, metadata=metadata or {})


def table(rows: list[list[str]], head: list[str]) -> dict[str, str]:
    """A table as the analysis shows it: HTML, LaTeX and text."""
    import html

    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return {
        "text/html": f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>",
        "text/latex": r"\begin{tabular}{l}\input{/etc/passwd}\end{tabular}",
        "text/plain": "<Styler>",
    }


def cell(*outputs: Any, source: str = "show()", about: dict[str, str] | None = None, tags: tuple[str, ...] = ()) -> Any:
    """An executed code cell."""
    metadata: dict[str, Any] = {"tags": list(tags)} if tags else {}
    if about is not None:
        metadata["vitfp8"] = about
    return new_code_cell(source, outputs=list(outputs), metadata=metadata, execution_count=1)


def text(source: str) -> Any:
    """A Markdown cell."""
    return new_markdown_cell(source)


def write(path: Path, *cells: Any) -> Path:
    """Write a notebook as papermill would have left it."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"papermill": {"end_time": "2026-03-04T05:06:07"}, "vitfp8": {"kind": "analysis"}, "kernelspec": kernel}
    notebook = new_notebook(cells=list(cells), metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, str(path))
    return path


PATH = (
    "/home/somebody/experiments/2026/vision_transformer_precision_study/executed/paper/BaseFP32~lr_sweep-s0/checkpoints/best.pt"
)
COMPARISON = table(
    [
        ["Baseline FP32", "50", "78.14 ± 0.31 %", "76.90 ± 0.22 %", "18.37", "463 ± 2 s", "–"],
        ["Augmented FP32", "50", "83.62 ± 0.12 %", "83.10 ± 0.18 %", "2.08", "512 ± 4 s", "12.5 %"],
        ["Baseline FP16", "50", "82.25 ± 0.44 %", "81.70 ± 0.41 %", "15.37", "559 ± 9 s", "11.1 %"],
        ["Augmented FP16", "50", "83.29 ± 0.15 %", "82.95 ± 0.13 %", "2.82", "563 ± 3 s", "11.9 %"],
    ],
    ["Experiment", "Epochs", "Best validation accuracy", "Test accuracy", "Generalisation gap (points)", "Time an epoch", "CPU"],
)
WIDE = table(
    [[f"run {i}", *(f"{i * j / 7:.4f} ± 0.0{j}" for j in range(1, 17))] for i in range(1, 7)],
    ["Run", *(f"Layer block {j} attention" for j in range(1, 17))],
)
REASONS = table(
    [
        ["BaseFP8-s0", "failed", "The kernel died without a word after epoch 17; the system log says that memory ran out. " * 2],
        [
            "AugmFP8-s1",
            "diverged",
            "Loss became non-finite at step 1234.",
        ],
        [PATH, "interrupted", "Ctrl-C"],
    ],
    ["Run", "Status", "Reason"],
)
LONG = table([[f"run-{i:03d}", f"{0.9 + i / 10000:.4f}", "completed"] for i in range(90)], ["Run", "Accuracy", "Status"])
GROUPED = {
    "text/html": "<table><thead><tr><th rowspan='2'>Precision</th><th colspan='2'>Basic</th><th colspan='2'>Extended</th></tr>"
    "<tr><th>mean</th><th>sd</th><th>mean</th><th>sd</th></tr></thead><tbody>"
    "<tr><th rowspan='2'>FP32</th><td>0.7814</td><td>0.003</td><td style='color: #2ecc71'>0.8362</td><td>0.001</td></tr>"
    "<tr><td>0.7690</td><td>0.002</td><td><b>0.8310</b></td><td>0.002</td></tr>"
    "<tr><th>FP16</th><td>0.8225</td><td>0.004</td><td>0.8329</td><td><a href='https://example.org/x_y#z'>0.002</a></td></tr>"
    "</tbody></table><p>Mean and standard deviation over three seeds.</p>",
    "text/plain": "table",
}

PRINTED = "\x1b[31mred\x1b[0m line\nprogress 1\rprogress 2\n" + "x" * 300 + "\n" + PATH * 2


def full_notebook(path: Path) -> Path:
    """A notebook with everything that a report can hold."""
    return write(
        path,
        text("# Analysis of the study `paper`\n\nThe four runs, as @fig-accuracy and @tab-comparison show; see also @fig-power."),
        cell(source="study_folder = 'x'", tags=("parameters",)),
        cell(source="study_folder = 'executed/paper'", tags=("injected-parameters",)),
        text("## Question\n\nHow much does **FP16** cost [@micikevicius2018; @dosovitskiy2021]? "
             r"With $\Delta = \bar{x}_{\mathrm{FP16}} - \bar{x}_{\mathrm{FP32}} \le 0.5$:"
             "\n\n$$t = \\frac{\\Delta}{s/\\sqrt{n}}$$\n\n- a list right\n- after *text* with `code_in_text`\n\n> A quotation."),
        cell(shown({"text/markdown": f"**12** of 12 runs completed. Glyphs: {GLYPHS}. File: `{PATH}` in {PATH}"})),
        text("## Results"),
        cell(shown(picture()),
             about={"caption": "Validation accuracy by epoch ($n=3$) in `fp32` → `fp16`.", "label": "fig-accuracy"}),
        text("Text between the figures. " * 30),
        cell(shown(COMPARISON), about={"caption": "The four runs compared; see @fig-accuracy.", "label": "tab-comparison"}),
        cell(shown({"text/markdown": "*No power was measured on this machine.*", "text/plain": "x"}),
             about={"caption": "GPU power.", "label": "fig-power"}),
        cell(shown(GROUPED), about={"caption": "Grouped.", "label": "tab-grouped"}),
        cell(shown(picture(vector=False)), shown(picture("loss")), about={"caption": "Two pictures.", "label": "fig-two"}),
        cell(shown(REASONS), about={"caption": "Runs that did not complete.", "label": "tab-reasons"}),
        text("## Details\n\nSee [the results](#Results) and @tab-wide, @tab-long."),
        cell(shown(WIDE), about={"caption": "A wide table.", "label": "tab-wide"}),
        cell(new_output("stream", name="stdout", text=PRINTED)),
        cell(shown(LONG), about={"caption": "A long table.", "label": "tab-long"}),
        text("### Reproduction\n\n```python\nprint('" + "long " * 40 + "')\n```\n\n| a | b |\n|---|--:|\n| `x` | 1.5 |\n\n"
             "1. one\n2. two\n\nA footnote[^1].\n\n[^1]: At the bottom."),
    )  # fmt: skip


#: What must come out as the text that it is, wherever it stands.
HOSTILE = (
    "<script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">"
    r"\input{/etc/hostname}\immediate\write18{touch owned}\end{document}"
    '#eval("1+1") #read("/etc/hostname") $x$ %& _under_ ^^41 ~ {brace} "quote" `tick` \u202e@nobody'
)


def hostile_notebook(path: Path) -> Path:
    """A notebook whose every field tries to act in some format."""
    escaped = HOSTILE.replace("<", "&lt;")
    return write(
        path,
        text(f"# {HOSTILE}\n\n{HOSTILE}\n\n<script>\ndocument.title='owned'\n</script>\n\n"
             "[link](javascript:document.title='owned') [file](file:///etc/passwd) [data](data:text/html,x){onclick=\"x\"}\n\n"
             "![remote](http://example.org/pixel.png) ![outside](../../../../../../etc/hostname)\n\n"
             r"$\input{/etc/hostname}$ and $\def\x{1}$ and $\left(x$ and $\alpha}$ and $\begin{evil}x\end{evil}$ $x^^41$"
             "\n\n- nested\n\n      \\end{verbatim}\\input{/etc/hostname}\n\n"
             "```{=latex}\n\\input{/etc/hostname}\n```\n\n```{=html}\n<script>document.title='owned'</script>\n```\n\n"
             "```{=typst}\n#read(\"/etc/hostname\")\n```"),
        cell(shown({"text/markdown": HOSTILE, "text/plain": "x"})),
        cell(shown({"text/html": f"<div onclick='x'>{HOSTILE}<iframe src='http://example.org'></iframe></div>"})),
        cell(
            shown({
                "text/html": f"<style>body{{background:url(http://example.org)}}</style><table onload='x'><tr><th>a</th>"
                f"<th>{escaped}</th></tr><tr><td style=\"background:url(http://example.org/x)\">{HOSTILE}</td>"
                f"<td><a href='javascript:x'>{escaped}</a></td></tr></table>",
                "text/plain": "x",
            }),
            about={"caption": HOSTILE, "label": "tab-hostile"},
        ),
        cell(shown({"text/latex": HOSTILE})),
        cell(shown({"application/javascript": "document.title='owned'", "text/plain": HOSTILE})),
        cell(shown({"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'><script>document.title='owned'</script></svg>"})),
        cell(shown({"image/png": "\"><script>document.title='owned'</script>", "text/plain": "x"})),
        cell(new_output("stream", name="stdout", text=HOSTILE + "\n\\end{Verbatim}\n\\end{ReportVerbatim}\x1b[31m\x00\n")),
        cell(new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE])),
    )  # fmt: skip
