"""A model's name -> the folder with its files: bundled, local, or from the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from pocketlm.errors import ModelLoadError

BUNDLED = Path(__file__).parent / "bundled"
SHAPE_PREFIX = "shape:"  # of a name that stands for random weights of a size, see shapes.py

# All that pocketlm reads. Exact names: repositories also hold copies of the weights for other programs.
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]


def resolve(name: str) -> Path:
    """The folder of a model: "bundled", a local folder, or the id of a Hub repository, fetched if need be."""
    if name == "bundled":
        return BUNDLED
    if not name:
        raise ModelLoadError('the model name is empty; give "bundled", a folder or a Hugging Face Hub id')
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise ModelLoadError(f"the folder {name} has no config.json, so it is not a model's folder")
        return Path(folder)
    if os.path.exists(folder):
        raise ModelLoadError(f"{name} is a file; give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")):
        raise ModelLoadError(f"the folder {name} does not exist")
    return _from_hub(name)


def is_local(name: str) -> bool:
    """Whether a model's files are found without asking the Hub's library."""
    return name == "bundled" or name.startswith(SHAPE_PREFIX) or os.path.isdir(os.path.expanduser(name))


def without_folders(name: str, message: str) -> str:
    """A message about a model for its users, who gave its name and need not learn where its files are."""
    message = message.replace(str(BUNDLED), "bundled")
    if is_local(name):
        message = message.replace(os.path.expanduser(name), name)
    if "huggingface_hub" in sys.modules:  # else no path is one of its cache's
        from huggingface_hub import constants

        repository = re.escape(constants.HF_HUB_CACHE) + r"/[^/\s]+"
        message = re.sub(repository + r"/snapshots/[^/\s]+", name, message)
        message = re.sub(repository, "the Hugging Face cache", message)
    return message


def _from_hub(repo_id: str) -> Path:
    # Imported here because it takes a while and most starts do not need it.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.file_download import repo_folder_name

    try:
        return Path(snapshot_download(repo_id, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise ModelLoadError(
            f"{repo_id[:100]!r} is not a local folder, and it cannot be the id of a Hugging Face Hub model, "
            "which is like gpt2 or org/name"
        ) from error
    except GatedRepoError as error:
        raise ModelLoadError(
            f"the Hugging Face Hub gives {repo_id} only to those who accepted its terms: accept them on "
            "its page, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{repo_id} is not a local folder, and the Hugging Face Hub has no such model, or it is private "
            "and HF_TOKEN is not set to a token that may read it"
        ) from error
    except LocalEntryNotFoundError as error:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        elif isinstance(error.__cause__, HfHubHTTPError):
            reason = f"it answers with status {error.__cause__.response.status_code}"
        else:
            reason = "there is no network"
        raise ModelLoadError(
            f"{repo_id} is not a local folder and cannot be fetched from the Hugging Face Hub: {reason}; "
            f"its files would be in {folder}"
        ) from error
    except Exception as error:  # its HTTP client and its file transfer raise many kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelLoadError(f"fetching {repo_id} from the Hugging Face Hub failed: {reason}") from error
