"""Stands in for IPython, of which SGLang imports two notebook functions; the real one loads some 400 modules."""


def get_ipython() -> None:
    """Return None, as IPython does outside of a notebook."""
