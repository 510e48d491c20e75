"""Studies: recipes varied in named fields, trained with several seeds, and compared with intervals."""
