"""Makes `jupyter nbconvert` export as the report does: tags honoured, captions numbered, no network needed, pandoc found.

Jupyter reads it from `etc/jupyter` of the environment, where installing the project puts it; from a checkout otherwise with
`jupyter nbconvert --config jupyter_nbconvert_config.py …`. Code is shown; tag a cell `remove-input` to hide it.
"""

import os
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
if (here / "vitfp8").is_dir():
    sys.path.insert(0, str(here))

c = get_config()  # noqa: F821
try:
    from vitfp8.workflow.export.exporters import nbconvert_config
    from vitfp8.workflow.export.prose import find_pandoc

    c.merge(nbconvert_config(code=True))
    # nbconvert's other formats look for pandoc on the PATH; the one from pip lies elsewhere.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(Path(find_pandoc()).parent)])
except (ImportError, ValueError) as error:
    print(f"jupyter_nbconvert_config.py: nbconvert's own settings are used: {error}", file=sys.stderr)
