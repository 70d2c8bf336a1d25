"""The Hugging Face hub: weights fetched from it, a published folder pushed to it. The only file that knows it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import (
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
from atnet.weights.info import HASHES, HUB, MAX_HASHES_BYTES, MAX_WEIGHTS_BYTES, MODEL

OPTIONAL = re.compile(r"model\.onnx|web/.*")
"""Files that a publication may have or not."""


def fetch(address: str) -> Path:
    """The weights file at "hf-hub:user/name" or "hf-hub:user/name@revision", in Hugging Face's cache.

    Of the files there it fetches two, the hashes and the safetensors file, both of one commit. It asks for their sizes
    first. Without a network, or with HF_HUB_OFFLINE=1, it is what the cache has.
    Raises HubError naming what is not there, or too large.
    """
    name, _, revision = address.removeprefix(HUB).partition("@")
    commit: str | None = revision or None
    path = Path()
    with _plainly(name):
        for file, most in ((HASHES, MAX_HASHES_BYTES), (MODEL, MAX_WEIGHTS_BYTES)):
            known = hf_hub_download(
                name, file, revision=commit, dry_run=True, library_name="atnet", library_version=__version__
            )
            if known.file_size is None or known.file_size > most:
                raise HubError(f"{address}: {file} is larger than {most:,} bytes, or does not say how large it is")
            commit = known.commit_hash
            path = Path(hf_hub_download(name, file, revision=commit, library_name="atnet", library_version=__version__))
    return path


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
def _plainly(name: str) -> Iterator[None]:
    """Errors of huggingface_hub as a HubError that says what to do."""
    try:
        yield
    except AtnetError:
        raise
    except HFValidationError as error:
        raise HubError(f"{name}: no name of a model on the hub, as user/name is one") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{name}: HF_HUB_OFFLINE is set, so the hub is not asked") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{name}: the hub knows it, but not this revision of it") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{name}: no such model on the hub, or a private one that your token may not see") from error
    except LocalEntryNotFoundError as error:
        raise HubError(f"{name}: the hub can't be reached, and it is not in the cache") from error
    except EntryNotFoundError as error:
        raise HubError(f"{name}: no {HASHES} and {MODEL} in it, so `atnet publish` has not written it") from error
    except HfHubHTTPError as error:
        remedy = {
            401: "the token is not valid: `hf auth login`, or mend HF_TOKEN",
            403: "the token may not write there: give one that may, or a name of your own",
        }.get(error.response.status_code, "try again later")
        raise HubError(f"{name}: the hub refuses ({_first_line(error)}); {remedy}") from error
    except Exception as error:  # those of its HTTP client, which it changes, have no base of their own
        said = ": ".join(_first_line(one) for one in (error, error.__cause__) if one)
        raise HubError(f"{name}: the hub can't be reached, or broke off ({said})") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
