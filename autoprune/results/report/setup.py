"""What a search was run with: versions, settings, and what tells its data from others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autoprune.pruning.files import read_json
from autoprune.results.store import Store


def versions(front: Mapping[str, Any], store: Store) -> dict[str, str]:
    tags = _start_tags(store)
    told = {n.removeprefix("version."): v for n, v in tags.items() if n.startswith("version.")}
    commit = {"git commit": tags["git_commit"]} if "git_commit" in tags else {}
    return {**front.get("versions", told), **commit}


def settings(identity: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Return the settings of the search and of its study, as people know them."""
    tags = _start_tags(store)
    found = {
        n.removeprefix("setting."): re.sub(r"[()']", "", v) if v.startswith("(") else v
        for n, v in tags.items()
        if n.startswith("setting.") and v != "None"
    }
    study = identity.get("study_settings") or {}
    return {"search": found, "study": study, "data": identity.get("data") or {}}


def _start_tags(store: Store) -> dict[str, str]:
    """Return what MLflow is told at the start of the latest sitting, if it is told anything."""
    starts = sorted(store.spool.glob("[0-9]*-start.json"))
    return dict(read_json(starts[-1]).get("tags", {})) if starts else {}
