"""Where a model's files lie: the embedded checkpoint, a local folder, or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engine.model_config import CheckpointError

EMBEDDED_MODEL = Path(__file__).parent / "embedded" / "deepseek-v3.2-tiny"

# Data only. The files under encoding/ are parsed for the text in them, never run.
DOWNLOADED_FILES = ["*.json", "*.safetensors", "encoding/*"]


def resolve_model(model: str, revision: str | None = None) -> Path:
    """The folder with the files of `model`: "" is the embedded checkpoint, then folders, then ids.

    A hub id is downloaded into huggingface_hub's cache, or only looked up there when
    HF_HUB_OFFLINE is set. `revision` is a branch, tag or commit, for hub ids only.
    Raises CheckpointError when there is no such folder, id or revision.
    """
    if not model:
        return _no_revision(EMBEDDED_MODEL, revision)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _no_revision(folder, revision)
    name = f"{model} at revision {revision}" if revision else model
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=DOWNLOADED_FILES))
    except HFValidationError as error:
        raise CheckpointError(f"{model}: no such folder, and no hub id ({error})") from error
    except GatedRepoError as error:
        raise CheckpointError(f"{name}: the hub asks for a login with access to it") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{name}: no such folder, and not on the hub") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the hub has no such revision") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such folder, not in the hub's cache, and the hub cannot be reached"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{name}: the download failed ({error})") from error


def _no_revision(folder: Path, revision: str | None) -> Path:
    if revision is not None:
        raise CheckpointError(f"{folder}: a local folder has no revision {revision!r}")
    return folder
