"""A complete file, and copies to be changed."""

import os
import shutil
from pathlib import Path

import pytest
import store_child as child


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    child.capture(folder / "a.h5")
    return folder / "a.h5"


@pytest.fixture
def copy(complete, tmp_path):
    return Path(shutil.copy(complete, tmp_path / "copy.h5"))


@pytest.fixture
def unsynced(monkeypatch):
    """Only a machine that loses power forgets what was not synced; a killed process does not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
