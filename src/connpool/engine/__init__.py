"""The engine: one state machine and one set of slow paths for every runtime.

It knows no thread, no event loop, no clock, no driver and no logging.  Read `core`, then `flows`.
"""
