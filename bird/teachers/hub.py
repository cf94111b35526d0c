"""Weights from the hub: which commit they are, and why they cannot be had."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import final

from bird.errors import MissingWeightsError

__all__ = ["Source", "commit_of", "explained", "open_clip_source", "timm_source", "transformers_source"]

COMMIT = re.compile(r"[0-9a-f]{40}")
ASK_SECONDS = 10.0


@final
@dataclasses.dataclass(frozen=True)
class Source:
    """A repository of the hub at a revision (branch, tag or commit), and the files that are wanted of it: of each group,
    one."""

    repository: str
    revision: str
    files: tuple[tuple[str, ...], ...]


def transformers_source(spec: str) -> Source:
    """Of `REPO[@REVISION]`."""
    repository, _, revision = spec.partition("@")
    weights = ("model.safetensors", "model.safetensors.index.json")
    return Source(repository, revision or "main", (("config.json",), weights))


def open_clip_source(spec: str) -> Source | None:
    """Of `MODEL/TAG` or `hf-hub:REPO`; None for what open_clip has elsewhere, or does not know."""
    import open_clip

    if spec.startswith("hf-hub:"):
        weights = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        return Source(spec.removeprefix("hf-hub:"), "main", (("open_clip_config.json",), weights))
    model, _, tag = spec.partition("/")
    if model not in open_clip.list_models():
        return None
    repository, _, file = str((open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub", "")).rpartition("/")
    if not repository:
        return None
    plain = file or "open_clip_pytorch_model.bin"
    safe = [] if file and not file.endswith(".safetensors") else ["open_clip_model.safetensors"]
    return Source(repository, "main", ((*safe, plain),))


def timm_source(spec: str) -> Source | None:
    """Of `NAME[.TAG]`; None for what timm has elsewhere, or does not know."""
    import timm

    architecture, _, tag = spec.partition(".")
    if not timm.is_model(architecture) or (tag and spec not in timm.list_pretrained(f"{architecture}.*")):
        return None
    published = timm.models.get_pretrained_cfg(spec)
    repository, _, revision = str(getattr(published, "hf_hub_id", None) or "").partition("@")
    if not repository:
        return None
    file = str(getattr(published, "hf_hub_filename", None) or "model.safetensors")
    return Source(repository, revision or "main", ((file, "pytorch_model.bin"),))


def commit_of(source: Source) -> str | None:
    """The commit that the hub's cache on this machine has for the revision: where files just loaded came from."""
    if COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repository, repo_type="model")
    try:
        return (folder / "refs" / source.revision).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def explained(error: MissingWeightsError, source: Source) -> MissingWeightsError:
    """The same error, with what the hub says of the repository when it is asked what is the matter."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = source.repository
    try:
        told = HfApi().model_info(name, revision=source.revision, timeout=ASK_SECONDS)
    except GatedRepoError:
        return _said(
            error, f"a repository {name} that wants its terms accepted", "accept them, then log in: `hf auth login`"
        )
    except RepositoryNotFoundError:
        return _said(
            error, f"no repository {name}, or a private one", "check the name; for a private one `hf auth login`"
        )
    except RevisionNotFoundError:
        fix = "name a branch, a tag or a commit that it has (REPO@REVISION), or none for its newest state"
        return _said(error, f"no revision {source.revision} of {name}", fix)
    except Exception:  # not to be reached: the first error has said so
        return error
    there = {file.rfilename for file in told.siblings or []}
    if lacking := [group for group in source.files if not there & {*group}]:
        missing = ", ".join(" or ".join(group) for group in lacking)
        weights = sorted(
            file for file in there if file.endswith((".bin", ".pt", ".pth", ".safetensors", ".msgpack", ".h5"))
        )
        found = f"{name}@{told.sha} without {missing}"
        if weights:
            found += f" (of weights it has {', '.join(weights[:4])})"
        return _said(error, found, "choose a repository that has them, or give the weights with --weights PATH")
    return error


def _said(error: MissingWeightsError, found: str, fix: str) -> MissingWeightsError:
    return MissingWeightsError(where=error.where, found=found, wanted=error.wanted, fix=fix)
