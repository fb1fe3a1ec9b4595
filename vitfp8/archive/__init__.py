"""Backups: a verified copy of results, and its way back."""
