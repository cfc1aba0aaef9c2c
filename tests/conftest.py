"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import settings

# A machine that others share takes any time for a case.
settings.register_profile("pet-surgery", deadline=None)
settings.load_profile("pet-surgery")

# A shell that starts the tests in its background has them ignore Ctrl-C, and so would every command they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
