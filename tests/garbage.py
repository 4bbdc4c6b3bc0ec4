"""Collections that take milliseconds in a test-suite of half a million objects."""

import gc


def keep_out_of_collections() -> None:
    """Leave what is there, and what pytest will keep of it, out of all further collections."""
    gc.collect()
    gc.freeze()
