"""Figures: the drawing, and the figures of a study, a run, its numeric health, and of number formats."""
