"""What an operator is told: errors whose message names the fix, printed by the command line without a traceback.

Knows nothing of requests (those errors are in `serve.errors`). Raised by the operating modules of `cluster`.
"""


class OperatorError(Exception):
    """Something the person at the command line can put right; the message says how."""
