"""From an executed notebook to HTML, LaTeX and PDF, by way of one document in pandoc's tree.

``exporters`` are nbconvert's door: they leave out tagged cells. ``document`` reads the other cells into one tree, the same for
every format: captions, numbers and references, tables from their data, nothing that could act. ``writing`` adds what a format
needs of its own and has pandoc write it with a template from ``templates/``. ``pdf`` runs XeLaTeX or Typst, and ``build`` puts a
study's report in place.
"""
