"""`bird push`: an exported student to a hub of models, through huggingface_hub. Nothing is sent without this command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bird.errors import BirdError, HubError, RunError, UsageError
from bird.weights import first_line, offline_if_unreachable
from bird_pipelines import runs
from bird_pipelines.shipping.card import UNWRITTEN
from bird_pipelines.shipping.formats import file_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["push"]

KINDS = (".onnx", ".pt2", ".safetensors", ".json")  # nothing that is unpickled
LOG_IN = "`hf auth login`, or set HF_TOKEN, with a token that may write"
REFUSED = {
    401: ("a token that the hub does not know", f"a valid token: {LOG_IN}"),
    403: ("a token without the right to write there", f"another OWNER, or {LOG_IN} to it"),
}


def push(export: Path, repository: str, *, public: bool = False, revision: str | None = None) -> dict[str, Any]:
    """Send the folder `export` of a finished export to the model repository `repository`, OWNER/NAME, in one commit: the
    student, student.json and the card. Returns where it is now.

    The repository is made if there is none: private, unless `public`. `revision` is a branch, which is made, too. The
    hub is the one of huggingface_hub (HF_ENDPOINT), and so is the token (HF_TOKEN, `hf auth login`).

    Raises UsageError for what is no export, for another form of name, without a token, and for a repository that everybody
    can read unless `public`; RunError for a file that is not the one that was checked; HubError for a hub that does not
    answer, or that refuses.
    """
    files = _files(export)
    with _hub(repository) as api:
        private = _private(api, repository, public)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        about = runs.read_json(export / "student.json")
        title = f"{about['architecture']}, {about['to']}, {about['precision']}"
        commit = _commit(api, repository, files, title, revision)
    return {
        "repository": repository,
        "url": f"{api.endpoint}/{repository}",
        "private": private,
        "revision": revision or "main",
        "commit": commit,
        "files": {name: len(data) for name, data in files.items()},
        "card_unwritten": UNWRITTEN.encode() in files["README.md"],
    }


def _files(folder: Path) -> dict[str, bytes]:
    """What goes up: the files that student.json has the sha256 of, itself, and the card. Raises UsageError for what is no
    export, RunError for files that are not those of the export."""
    about = runs.read_json(folder / "student.json") if (folder / "student.json").is_file() else {}
    if about.get("format") != "bird-export-1":
        is_run = (folder / "config.json").is_file() and (folder / "curve.jsonl").is_file()
        raise UsageError(
            where=str(folder),
            found="a run folder" if is_run else "no export",
            wanted="the folder of an export: it was checked, and has a card",
            fix=f"bird export {folder if is_run else 'RUN'} OUT, then push OUT",
        )
    names: Mapping[str, Any] = about["files"]
    if strange := [name for name in names if Path(name).name != name or Path(name).suffix not in KINDS]:
        raise UsageError(
            where=str(folder / "student.json"),
            found=f"a file {strange[0]!r}",
            wanted=f"files of this folder, {', '.join(KINDS)}",
            fix="export the run again",
        )
    if not (folder / "README.md").is_file():
        raise RunError(
            where=str(folder),
            found="no README.md, the card",
            wanted="the files as `bird export` wrote them",
            fix="export the run again",
        )
    checked = {name: file_of(folder, about, name) for name in names}
    return {name: (folder / name).read_bytes() for name in ("README.md", "student.json")} | checked


@contextmanager
def _hub(repository: str) -> Iterator[HfApi]:
    """The hub's client, with a token. What its calls raise becomes one of our errors."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline_if_unreachable()
    api = HfApi()
    where = f"bird push, {repository} at {api.endpoint}"
    try:
        if repository.count("/") != 1:
            fix = "name a user or an organisation first"
            raise UsageError(where=where, found=repr(repository), wanted="OWNER/NAME", fix=fix)
        if get_token() is None:
            raise UsageError(where=where, found="no token", wanted="a token that may write there", fix=LOG_IN)
        if constants.HF_HUB_OFFLINE:
            raise HubError(
                where=where,
                found="no answer, or HF_HUB_OFFLINE is set",
                wanted="a hub that can be reached",
                fix="connect to the network and push again; the export stays as it is",
            )
        yield api
    except BirdError:
        raise
    except HFValidationError as error:
        raise UsageError(
            where=where, found=repr(repository), wanted="OWNER/NAME as a hub has it", fix=first_line(error)
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        found, fix = REFUSED.get(status, (f"the answer {status} ({first_line(error)})", "push again; see --debug"))
        raise HubError(where=where, found=found, wanted="a hub that takes the commit", fix=fix) from error
    except Exception as error:  # its transports raise what they like, and have no common base
        raise HubError(
            where=where,
            found=f"a failure on the way ({type(error).__name__}: {first_line(error)})",
            wanted="a hub that takes the commit",
            fix="push again: a commit is whole, or is not there",
        ) from error


def _private(api: HfApi, repository: str, public: bool) -> bool:
    """Make the repository if there is none. Whether it is private. Raises UsageError for one that everybody can read, unless
    this was said."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = bool(api.repo_info(repository).private)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=not public)
        return not public
    if not private and not public:
        raise UsageError(
            where=f"bird push, {repository}",
            found="a repository that everybody can read",
            wanted="a private one",
            fix="say --public, or choose another name",
        )
    return private


def _commit(api: HfApi, repository: str, files: Mapping[str, bytes], title: str, revision: str | None) -> str:
    """One commit of all files; its name."""
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    return str(api.create_commit(repository, operations, commit_message=title, revision=revision).oid)
