"""Killing a search at random moments, again and again, until it is done."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from helpers import ROOT, environment

DRIVE = """\
import json, sys
sys.path.insert(0, {tests!r})
import autoprune.asking, autoprune.driver
from autoprune import run

autoprune.driver.CHECKPOINT_SECONDS = 0.0
autoprune.asking.RETRIES = int(sys.argv[4])
settings = json.loads(sys.argv[3])
result = run.search(sys.argv[1], out=sys.argv[2], **settings)
print(json.dumps([m.name for m in result.front]))
"""
"""Runs a search whose trials keep how far they have come after every epoch that is worth it."""


@dataclass
class Chaos:
    """What was done to a search until it was done.

    Attributes
    ----------
    drivers, workers
        How often one was killed.
    """

    study: Path
    out: Path
    settings: dict[str, Any]
    kills: int
    """How many kills there are to be."""
    seed: int = 0
    retries: int = 2
    """How often a trial may be tried again."""
    longest: float = 12.0
    """Most seconds to wait with a kill, counted from when the search has begun to train."""
    drivers: int = 0
    workers: int = 0
    said: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run the search to its end, with kills on the way."""
        rng = random.Random(self.seed)
        for _ in range(20 * self.kills + 20):
            if self.drivers + self.workers >= self.kills:
                break
            if self._sitting(rng):
                return
        driver = self._start()
        _, said = driver.communicate(timeout=900)
        assert driver.returncode == 0, said

    def _start(self) -> subprocess.Popen[str]:
        import json

        script = DRIVE.format(tests=str(ROOT / "tests"))
        command = [sys.executable, "-W", "ignore", "-c", script]
        return subprocess.Popen(
            [
                *command,
                str(self.study),
                str(self.out),
                json.dumps(self.settings),
                str(self.retries),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _sitting(self, rng: random.Random) -> bool:
        """Start the search and kill workers, in the end the driver; return whether it was done."""
        driver = self._start()
        while self.drivers + self.workers < self.kills:
            self._wait(driver, rng)
            if driver.poll() is not None:
                _, said = driver.communicate()
                self.said.append(said)
                return driver.returncode == 0
            workers = _workers(driver)
            if workers and rng.random() < 0.5:
                rng.choice(workers).send_signal(signal.SIGKILL)
                self.workers += 1
                continue
            driver.kill()
            driver.communicate()
            self.drivers += 1
            return False
        driver.kill()
        driver.communicate()
        self.drivers += 1
        return False

    def _wait(self, driver: subprocess.Popen[str], rng: random.Random) -> None:
        """Wait until the search trains, and a while longer."""
        while driver.poll() is None and not (self.out / "study.journal").exists():
            time.sleep(0.02)
        before = _size(self.out / "study.journal")
        patience = time.monotonic() + rng.uniform(0.0, self.longest)
        while driver.poll() is None and time.monotonic() < patience:
            # Most of a sitting's time goes into its start: kills are to fall where it writes.
            if _size(self.out / "study.journal") > before and rng.random() < 0.05:
                return
            time.sleep(0.01)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _workers(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver.pid).children()
        return [c for c in children if any("running.worker" in w for w in c.cmdline())]
    except psutil.NoSuchProcess:
        return []
