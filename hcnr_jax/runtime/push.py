"""Uploads a finished output folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from hcnr_jax.errors import InputError, RunError
from hcnr_jax.runtime.hub_errors import quiet_hub_log


def check_push(repo: str) -> None:
    """Check, before any work, that a folder can be uploaded to `repo`.

    Raises:
        InputError: the name is not one of the hub, or no token is at hand.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InputError(f"--push {repo}: expected a name of the Hugging Face hub, such as user/model") from None
    if repo.count("/") != 1:
        raise InputError(f"--push {repo}: expected a name of the Hugging Face hub with its owner, such as user/model")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push {repo}: HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it")
    if get_token() is None:
        raise InputError(f"--push {repo}: not logged in at the Hugging Face hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """Upload a folder as a model repository, which is created as private if there is none. Return its address.

    Raises:
        RunError: the hub cannot be reached or refuses the upload; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with quiet_hub_log():
            address = api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
            api.upload_folder(
                repo_id=repo, folder_path=folder, repo_type="model", commit_message="Restore honesty with hcnr_jax"
            )
    except Exception as error:  # the client raises its own kinds, httpx's and Python's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"--push {repo}: the upload failed ({type(error).__name__}: {reason}); the model is complete in {folder}: "
            f"upload it later with `hf upload {repo} {folder}`"
        ) from error
    return str(address)
