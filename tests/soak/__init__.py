"""Fault injection: fuzzed inputs for everything that reads a file (``fuzz.py``), and killed runs (``kills.py``).

``python -m soak --help``, with this folder's parent on the path; ``make soak`` runs the long form.
"""
