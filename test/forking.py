"""Run a function in a forked child, also with fewer rights."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

NOBODY = 65534


def in_child(function: Callable[[], object], *, unprivileged: bool = False) -> str:
    """Return what *function* returns in a forked child, as text; what it raises fails the test.

    *unprivileged* takes the rights of root from the child, to whom every file may be written.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if unprivileged and os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            answer, code = str(function()), 0
        except BaseException:  # noqa: BLE001 - whatever it is, the parent has to say it
            answer, code = traceback.format_exc(), 1
        os.write(writer, answer.encode())
        # Not sys.exit: the child must not run the parent's clean-up.
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, answer
    return answer
