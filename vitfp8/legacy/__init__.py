"""Results of an earlier project become records marked ``imported``, and records its files.

`names` knows what the old folders are called now, `source` finds the files of the old tree, `reader` reads them strictly,
`checkpoints` looks into the weights, `hardware` puts samples on one time axis, `records` makes the record of a run, `importer`
writes it into a study with a `notebook`. `old_layout` goes the other way.
"""

from vitfp8.legacy.importer import IMPORTED_STUDY, ImportResult, import_results

__all__ = ["IMPORTED_STUDY", "ImportResult", "import_results"]
