"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


def shared_dir() -> Path:
    """The folder of reference files: ``SMT_SHARED_DIR``, or ``shared`` beside the repository."""
    repo_root = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("SMT_SHARED_DIR", repo_root.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files; tests that need it are skipped where it is absent."""
    folder = shared_dir()
    if not folder.is_dir():
        pytest.skip(f"the reference files are not at {folder.name}/ beside the repository; set SMT_SHARED_DIR")
    return folder
