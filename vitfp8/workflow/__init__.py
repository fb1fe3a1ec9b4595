"""The workflow around the notebooks: plan and execute runs, report, archive. Imports no torch."""
