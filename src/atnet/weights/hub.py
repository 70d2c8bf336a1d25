"""The Hugging Face hub: weights fetched from it, a published folder pushed to it. The only file that knows it."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    scan_cache_dir,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from atnet.errors import AtnetError, HubError
from atnet.version import __version__
from atnet.weights.info import (
    BINARY,
    HASHES,
    HUB,
    LOCAL,
    MAX_CONFIG_BYTES,
    MAX_HASHES_BYTES,
    MAX_WEIGHTS_BYTES,
    MODEL,
    TIMM_CONFIG,
)

LARGE_BYTES = 1_000_000
"""From which a line says what is fetched; a bar is the hub's."""

log = logging.getLogger("atnet")

OPTIONAL = re.compile(r"model\.onnx|web/.*")
"""Files that a publication may have or not."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Files in Hugging Face's cache, all of one commit.

    config: timm's config.json, where it was asked for and is there.
    sha256: of the tensors, by the hub; "" if it does not say.
    """

    path: Path
    commit: str
    config: Path | None
    sha256: str


def fetch(
    name: str,
    revision: str = "",
    *,
    address: str = "",
    with_config: bool = True,
) -> Fetched:
    """The weights in the repository "user/name", fetched where the cache has them not.

    address: what it is called to the user.
    with_config: also config.json and the hashes that `atnet publish` writes, where they are there.
    It asks for sizes first. Without a network, or with HF_HUB_OFFLINE=1, it is what the cache has.
    Raises HubError naming what is not there or too large, or how to bring what the hub does not give.
    """
    commit: str | None = revision or None
    unknown: list[LocalEntryNotFoundError] = []  # of files of which only the hub could say whether they are there
    address = address or f"{HUB}{name}"

    def get(file: str, most: int) -> Path | None:
        nonlocal commit
        if commit and try_to_load_from_cache(name, file, revision=commit) is _CACHED_NO_EXIST:
            return None
        try:
            known = hf_hub_download(
                name, file, revision=commit, dry_run=True, local_files_only=bool(unknown), library_name="atnet",
                library_version=__version__,
            )  # fmt: skip
        except LocalEntryNotFoundError as error:
            unknown.append(error)
            return None
        except EntryNotFoundError:
            return None
        if known.file_size is None or known.file_size > most:
            raise HubError(f"{address}: {file} is larger than {most:,} bytes, or does not say how large it is")
        path = Path(known.local_path)
        if known.will_download:
            if known.file_size > LARGE_BYTES:
                log.info("fetching %s of %s (%.0f MB)", file, name, known.file_size / 1e6)
            # The first file by the revision asked for, so that the cache knows this too when there is no network.
            path = Path(hf_hub_download(name, file, revision=commit, library_name="atnet", library_version=__version__))
        if path.parent.name != known.commit_hash:
            raise HubError(f"{address}: changed while it was fetched: try again")
        commit = known.commit_hash
        return path

    by_hand = f"`hf download {name} {MODEL} {TIMM_CONFIG} --local-dir FOLDER`, then --weights {LOCAL}FOLDER"
    with _plainly(name, f"to bring {MODEL} by hand: {by_hand}"):
        path = next((found for file in (MODEL, BINARY) if (found := get(file, MAX_WEIGHTS_BYTES))), None)
        if path is None and unknown:
            raise unknown[0]
        if path is None:
            raise HubError(f"{name}: no {MODEL} or {BINARY} in it")
        if with_config:
            get(HASHES, MAX_HASHES_BYTES)
        config = get(TIMM_CONFIG, MAX_CONFIG_BYTES) if with_config else None
    blob = path.resolve().name
    return Fetched(
        path=path,
        commit=path.parent.name,
        config=config,
        sha256=blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "",
    )


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Weights in the hub's cache: the repository "user/name", the newest commit's tensors and config.json."""

    repository: str
    path: Path
    config: Path | None


def cached() -> list[Cached]:
    """All weights in the hub's cache that are in a file of a usual name."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    found = []
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        if repository.repo_type != "model":
            continue
        for revision in sorted(repository.revisions, key=lambda one: -one.last_modified):
            files = {file.file_name: file.file_path for file in revision.files}
            tensors = next((files[name] for name in (MODEL, BINARY) if name in files), None)
            if tensors:
                found.append(Cached(repository=repository.repo_id, path=tensors, config=files.get(TIMM_CONFIG)))
                break
    return found


class Hub:
    """The hub, as the one whose token is in the usual places: HF_TOKEN, or the file of `hf auth login`.

    user: whose token it is.  Raises HubError if there is none, or the hub does not know it or can't be reached.
    """

    def __init__(self) -> None:
        if get_token() is None:
            raise HubError("no token for the hub: `hf auth login` once, or set HF_TOKEN, to one that may write")
        self.api = HfApi(library_name="atnet", library_version=__version__)
        with _plainly("the hub"):
            self.user = str(self.api.whoami()["name"])

    def push(self, folder: Path, name: str, *, private: bool, message: str) -> str:
        """Uploads the folder's files in one commit; returns its web address.

        name: "user/name", made if it is not there yet.
        private: whether others may not see it.
        What an earlier publication had there and this one has not is deleted in the same commit.
        Raises HubError if the hub refuses, or if there is something else there; then nothing was uploaded.
        """
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        with _plainly(name):
            self.api.create_repo(name, private=private or None, exist_ok=True)
            known = self.api.model_info(name)
            there = {file.rfilename for file in known.siblings or ()} - {".gitattributes"}
            if there and HASHES not in there:
                some = ", ".join(sorted(there)[:3])
                raise HubError(f"{name}: there is something else in it ({some}): choose another name")
            if private and not known.private:
                raise HubError(f"{name}: is there already, and public: leave --private out, or choose another name")
            done = self.api.create_commit(
                name,
                [
                    *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files),
                    *(
                        CommitOperationDelete(path_in_repo=file)
                        for file in sorted(there.difference(files))
                        if OPTIONAL.fullmatch(file)
                    ),
                ],
                commit_message=message,
                parent_commit=known.sha,
            )
        return str(done.commit_url)


@contextmanager
def _plainly(name: str, by_hand: str = "") -> Iterator[None]:
    """Errors of huggingface_hub as a HubError that says what to do; by_hand: without a hub."""
    remedy = f"; {by_hand}" if by_hand else ""
    try:
        yield
    except AtnetError:
        raise
    except HFValidationError as error:
        raise HubError(f"{name}: no name of a model on the hub, as user/name is one") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{name}: HF_HUB_OFFLINE is set, so the hub is not asked{remedy}") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{name}: the hub knows it, but not this revision of it") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{name}: no such model on the hub, or a private one that your token may not see") from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{name}: the hub can't be reached, and it is not in the cache{remedy}") from error
    except HfHubHTTPError as error:
        what = {
            401: "the token is not valid: `hf auth login`, or mend HF_TOKEN",
            403: "the token may not write there: give one that may, or a name of your own",
        }.get(error.response.status_code, "try again later")
        raise HubError(f"{name}: the hub refuses ({_first_line(error)}); {what}{remedy}") from error
    except Exception as error:  # those of its HTTP client, which it changes, have no base of their own
        said = ": ".join(_first_line(one) for one in (error, error.__cause__) if one)
        raise HubError(f"{name}: the hub can't be reached, or broke off ({said}){remedy}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
