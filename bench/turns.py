"""Two processes that take turns: each does one round whenever it is asked, so that both meet the same moments.

Only Python's own library is needed, so that the environment of the peers can run it too.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from measuring import NotMeasuredError

END_SECONDS = 60.0


def serve_rounds(one_round: Callable[[], float], facts: Mapping[str, Any]) -> None:
    """Say that all is ready; then do one round for each line on stdin, and say its rate; until stdin ends.

    Args:
        one_round: gives images a second.
        facts: what is said at the start.
    """
    print(json.dumps(dict(facts)), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": one_round()}), flush=True)


class Contestant:
    """A process that serves rounds; as a context it is started, and ended.

    Args:
        command: what to run; it calls `serve_rounds`.
        environment: its environment variables.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=self._environment,
        )
        try:
            self.facts = self._said()
        except NotMeasuredError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def round(self) -> float:
        """Images a second of one round.

        Raises:
            NotMeasuredError: the process has failed.
        """
        if self._process.stdin is None:
            raise NotMeasuredError("the process takes no requests")
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said last tells why
        return float(self._said()["rate"])

    def _said(self) -> dict[str, Any]:
        for line in self._process.stdout or ():
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                return said
        self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip() or "no words").splitlines()[-1]
        raise NotMeasuredError(f"FAILED: {' '.join(self._command)}: {last}")


def in_turns(sides: Mapping[str, Callable[[], float]], num_rounds: int) -> dict[str, list[float]]:
    """The rates of all sides, A B C, C B A, A B C and so on."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(num_rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            rates[name].append(sides[name]())
    return rates
