"""Metric lines: `[metrics] epoch=3 train_loss=0.0713 val_accuracy=0.9781`, one a line, in any script's output."""

from __future__ import annotations

import re

PREFIX = "[metrics]"
MAX_LINE_BYTES = 64 * 1024
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|nan|inf)"
_PAIR = re.compile(rf" ([A-Za-z_][A-Za-z0-9_.]*)=({_NUMBER})(?= |$)")


def parse_line(line: str) -> dict[str, float]:
    """The values of one line; {} where it is no metric line. What is not `name=number` in it is passed over."""
    if not line.startswith(PREFIX):
        return {}
    return {name: float(number) for name, number in _PAIR.findall(line.rstrip()[len(PREFIX) :])}


class MetricReader:
    """Finds metric lines in output that arrives in pieces of any size, in bounded memory."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False  # inside a line that is too long to be one of ours

    def feed(self, data: bytes) -> list[dict[str, float]]:
        """The metric lines that *data* completes."""
        complete, line_end, rest = data.rpartition(b"\n")
        lines = bytes(self._rest + complete).split(b"\n") if line_end else []
        if line_end:
            self._rest.clear()
        if lines and self._skipping:
            lines, self._skipping = lines[1:], False
        if not self._skipping:
            self._rest += rest
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest.clear()
            self._skipping = True
        found = (parse_line(line.decode("utf-8", "replace")) for line in lines if line.startswith(PREFIX.encode()))
        return [values for values in found if values]
