"""Models of the Hugging Face hub: `hf:owner/name[@revision][:file.gguf]`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from coldpress.store.download import RemoteFile
from coldpress.store.files import TEXT, check_path, is_wanted
from coldpress.store.pull import Remote
from quant.format.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SOURCE = re.compile(rf"hf:({_PART}(?:/{_PART})?)(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?(?::(.+))?")


@dataclass(frozen=True)
class HubSource:
    """repo: `owner/name`. revision: branch, tag or commit; None for the default branch. file: the
    one that is wanted; None for the whole model."""

    repo: str
    revision: str | None = None
    file: str | None = None


def parse_hub_source(text: str) -> HubSource:
    """InputError unless it is `hf:owner/name[@revision][:file]`."""
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise InputError(f"'{text[:200]}' is not of the form hf:owner/name[@revision][:file.gguf]")
    if match[3] is not None:
        check_path(match[3], text)
    return HubSource(match[1], match[2], match[3])


def find_on_hub(text: str, endpoint: str | None = None, token: str | None = None) -> Remote:
    """What a source consists of, at the commit that its revision stands for now.

    token: the one that `hf auth login` has kept, or HF_TOKEN, by default. Raises InputError for a
    repository, revision or file that is not there or not open to that token.
    """
    source = parse_hub_source(text)
    info, endpoint, token = _model_info(source, endpoint, token)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if urlsplit(endpoint).scheme != "https" and urlsplit(endpoint).hostname not in _LOCAL:
        headers = {}
    files = []
    for name in _chosen(source, [sibling.rfilename for sibling in info.siblings or []]):
        sibling = next(one for one in info.siblings or [] if one.rfilename == name)
        size = sibling.lfs.size if sibling.lfs else sibling.size
        if size is None or not (sibling.lfs or sibling.blob_id):
            raise InputError(f"{text}: the hub tells no size and digest of {name}; refused")
        files.append(
            RemoteFile(
                name,
                size,
                f"{endpoint}/{source.repo}/resolve/{info.sha}/{quote(name)}",
                sha256=sibling.lfs.sha256 if sibling.lfs else None,
                git_sha1=None if sibling.lfs else sibling.blob_id,
                headers=headers,
            )
        )
    suffix = f":{source.file}" if source.file else ""
    name = source.file.rpartition("/")[2].removesuffix(".gguf") if source.file else source.repo
    return Remote(f"hf:{source.repo}@{info.sha}{suffix}", name, files)


_LOCAL = ("127.0.0.1", "localhost", "::1")


def _model_info(
    source: HubSource, endpoint: str | None, token: str | None
) -> "tuple[ModelInfo, str, str | None]":
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    token = token or get_token()
    where = f"hf:{source.repo}" + (f"@{source.revision}" if source.revision else "")
    try:
        api = HfApi(endpoint=endpoint, token=token or False)
        info = api.model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=60
        )
    except HfHubHTTPError as error:
        raise InputError(f"{where}: {_explained(error, token)}") from error
    except Exception as error:  # whatever the hub's client and its HTTP library raise
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise InputError(
            f"{where}: {urlsplit(endpoint).netloc} cannot be asked ({reason}); check the network"
        ) from error
    if not info.sha:
        raise InputError(f"{where}: the hub names no commit; refused")
    return info, endpoint, token


def _explained(error: Exception, token: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return "its owner lets nobody read it who has not agreed to the terms on its page"
    if isinstance(error, RepositoryNotFoundError):
        hint = "this token may not read it" if token else "it needs a token: set HF_TOKEN"
        return f"there is no such model, or {hint}"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    return f"the hub answered with an error ({str(error).splitlines()[0][:200]})"


def _chosen(source: HubSource, names: Sequence[str]) -> list[str]:
    """The files to pull: the named one, or all of the one model that a repository holds."""
    where = f"hf:{source.repo}"
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if source.file is not None:
        if source.file not in names:
            there = ", ".join(ggufs[:20] or names[:20]) or "nothing"
            raise InputError(f"{where} has no file {source.file!r}; it has: {there}")
        if not is_wanted(source.file):
            raise InputError(f"{where}:{source.file} is not a file that we read; name a .gguf")
        return [source.file]
    others = [name for name in names if is_wanted(name) and name not in ggufs]
    has_other_weights = any(not name.lower().endswith(TEXT) for name in others)
    if len(ggufs) > 1 and not has_other_weights:
        raise InputError(
            f"{where} holds several models; name one as {where}:FILE, one of: "
            f"{', '.join(ggufs[:20])}"
        )
    if has_other_weights:
        # Folders of such repositories hold the same weights for other programs.
        top = [name for name in others if "/" not in name]
        return top if any(not name.lower().endswith(TEXT) for name in top) else others
    if ggufs:
        return [*ggufs, *(name for name in others if "/" not in name)]
    return list(names)
