"""What a result came from: versions and commit."""

from __future__ import annotations

import platform
import subprocess

from autoprune.version import VERSION


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    packages = ("torch", "optuna", "mlflow", "scikit-learn")
    return {
        "autoprune": VERSION,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def git_commit() -> str | None:
    """Return the commit of the working directory's repository, if it is one."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
