"""Pictures for people: figures, sheets, measures, other codecs."""
