"""Looking inside a model: modulation, attention, receptive fields, spectra, class activation maps, nearest neighbors.

One module per quantity. Its functions take a network and images and return raw arrays; ``pictures.py`` draws them, and
``kinds.py`` has the table of quantities that ``smt analyze`` goes through.
"""
