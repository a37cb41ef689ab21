"""Which revision of the code is running."""

import os
import subprocess
from pathlib import Path


def read_code_revision() -> str:
    """Git commit of the code, `+` appended if files differ from it; `CONTRIQUE_REVISION` wins; else `unknown`."""
    if revision := os.environ.get("CONTRIQUE_REVISION"):
        return revision
    root = Path(__file__).parent
    try:
        commit = _run_git("rev-parse", "HEAD", cwd=root)
        return commit + ("+" if _run_git("status", "--porcelain", "--untracked-files=no", cwd=root) else "")
    except (OSError, subprocess.SubprocessError):  # no git, or not a clone: a container image
        return "unknown"


def _run_git(*arguments: str, cwd: Path) -> str:
    completed = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=30)
    return completed.stdout.strip()
