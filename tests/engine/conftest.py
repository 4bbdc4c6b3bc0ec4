"""How hypothesis looks for counter-examples here: at random, and what it finds can be played again."""

from hypothesis import settings

# No deadline: an example that is slow on a busy machine is no counter-example.
settings.register_profile("engine", deadline=None, print_blob=True)
settings.load_profile("engine")
