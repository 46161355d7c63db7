"""What every test relies on."""

import signal

# A shell without job control starts background jobs deaf to Ctrl-C, and so would be all that tests start in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
