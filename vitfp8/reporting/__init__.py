"""From an executed notebook to HTML, LaTeX and Typst: one reading of the notebook, one writer a format.

``document`` reads the cells (numbered floats, prose, printed text), ``prose`` and ``tables`` hold what the formats share, and
``html``, ``latex`` and ``typst`` write. Everything in a notebook is data here: text is escaped, mark-up that could act is taken
out, and no writer passes raw HTML, LaTeX or Typst through. nbconvert drives it: the templates beside this file call the filters
that its exporters (``exporters``) bring along.
"""
