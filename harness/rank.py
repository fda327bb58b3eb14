"""One process of a group that trains a point together; harness/supervisor.py starts it: `python -m harness.rank RANK`.

    in   {"point", "run_dir", "runtime", "attempt", "scratch", "micro_batch", "meeting", "rank"} first,
         then {"stop": true} and answers {"mine": bool}
    out  {"event": "progress", "step", "steps", "loss"} | {"event": "ask"}: still mine? | {"event": "stopping"}
         last {"event": "end", "status"} | {"event": "lost", "message"} | {"event": "out_of_memory", "message", "step",
         "micro_batch"} | {"event": "error", "type", "message", "errno", "filename"}

The end of stdin means: leave at once, nothing may be written any more. Signals are the supervisor's to hear. What anything
prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path

from harness.point import Point
from harness.redact import redacted
from harness.rundir import LostRun, RunDirectory


class Onlooker(RunDirectory):
    """The run directory as ranks other than 0 have it: they read it and write nothing."""

    def write(self, name: str, data: bytes) -> None:
        pass


class Wire:
    """Messages to and from the supervisor."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.order = json.loads(sys.stdin.readline())
        self._stop, self._answers = threading.Event(), queue.Queue()
        self._said_stopping = False
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, **message) -> None:
        try:
            self._out.write(json.dumps(message) + "\n")
        except OSError:
            os._exit(1)

    def still_mine(self) -> bool:
        self.tell(event="ask")
        return self._answers.get()

    def should_stop(self) -> bool:
        if self._stop.is_set() and not self._said_stopping:
            self._said_stopping = True
            self.tell(event="stopping")
        return self._stop.is_set()

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "mine" in message:
                self._answers.put(message["mine"])
            elif message.get("stop"):
                self._stop.set()
        os._exit(0)


def main() -> None:
    """Train, say how it ended, and wait to be let go, so that no connection breaks that another rank still needs."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    wire = Wire()
    sys.stdout, sys.stderr = redacted(sys.stdout), redacted(sys.stderr)
    try:
        wire.tell(**_train(wire))
    except LostRun as e:
        wire.tell(event="lost", message=str(e))
    except Exception as e:
        traceback.print_exc()
        plain = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        message = plain if type(e).__name__ == "UserError" else (plain.strip().splitlines() or [""])[0]
        wire.tell(event="error", type=type(e).__name__, message=message, errno=getattr(e, "errno", None),
                  filename=str(getattr(e, "filename", None) or "") or None)  # fmt: skip
    sys.stderr.flush()
    threading.Event().wait()


def _train(wire: Wire) -> dict:
    """The message of the end."""
    import torch

    from harness.group import Group
    from harness.train import Runtime, train_rank

    order = wire.order
    point, runtime, rank = Point.from_dict(order["point"]), Runtime(**order["runtime"]), order["rank"]
    torch.set_num_threads(runtime.threads)
    scratch = Path(order["scratch"]) if order["scratch"] else None
    leads = rank == 0
    run = (RunDirectory if leads else Onlooker)(order["run_dir"], point, wire.still_mine, order["attempt"], scratch)
    group = Group(rank, runtime.devices, order["meeting"], runtime.device)

    def progress(step: int, steps: int, loss: float) -> None:
        wire.tell(event="progress", step=step, steps=steps, loss=loss)

    return train_rank(run, runtime, order["micro_batch"], group, progress if leads else None,
                      wire.should_stop if leads else None)  # fmt: skip


if __name__ == "__main__":
    main()
