"""CelebA, aligned and cropped: 202,599 photographs of 178×218 (Liu, Luo, Wang and Tang, ICCV 2015)."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from began.base.addresses import shown_url
from began.base.progress import Progress
from began.base.transfer import PAUSES, Lock, TransferError, hashed, transfer
from began.data.archives import ImageArchive
from began.data.card import Card
from began.data.sources.url import place
from began.params import DownloadParams

FILE_NAME = "img_align_celeba.zip"
NUM_BYTES = 1_443_490_838
SHA256 = "46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74"
# In the order they are tried. The authors' own is last: it often answers with a page about its quota.
MIRRORS = (
    "https://s3.amazonaws.com/pytorch-tutorial-assets/img_align_celeba.zip",
    "https://s3-us-west-1.amazonaws.com/udacity-dlnfd/datasets/celeba.zip",
    "https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pZjFTYXZWM3FlRnM&export=download&confirm=t",
)
_OTHER_ZIP = (  # the crop is all that this source decides
    "another zip of CelebA is taken by download.source: url with download.url: file:///PATH, and "
    "profiles.PROFILE.preprocess.crop: face"
)
TERMS = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def fetch(
    download: DownloadParams,
    archive: Path,
    downloads: Path,
    workers: int,
    mirrors: tuple[str, ...] = MIRRORS,
    num_bytes: int = NUM_BYTES,
    sha256: str = SHA256,
    pauses: tuple[float, ...] = PAUSES,
) -> Generator[Progress, None, Card]:
    """Brings the archive from the first of `mirrors` that has it, or from `download.celeba_zip`.

    The person must have accepted the terms also for a file that lies there already: they bind whoever uses the
    images, not whoever downloads them. The verified archive stays in `downloads`. Raises ValueError naming the key,
    or all mirrors with what went wrong at each.
    """
    if not download.accept_celeba_licence:
        raise ValueError(
            "download.accept_celeba_licence: false, expected true: CelebA is for non-commercial research only; read "
            f"its terms at {TERMS} and set the key if you accept them"
        )
    if download.celeba_zip is not None:
        try:
            source = Path(download.celeba_zip).expanduser()
        except RuntimeError:  # nobody of that name has a home
            source = Path(download.celeba_zip)
        yield from _copy_checked(source, archive, num_bytes, sha256)
    else:
        kept = downloads / FILE_NAME
        with Lock(kept) as lock:
            yield from lock.wait()
            yield from _from_mirrors(mirrors, kept, num_bytes, sha256, pauses)
            place(kept, archive, own=True)
    with ImageArchive(archive) as images:
        count = len(images.entries())
    return Card(
        source="celeba",
        count=count,
        licence=f"non-commercial research only, see {TERMS}",
        credit=(
            "CelebA: Z. Liu, P. Luo, X. Wang and X. Tang, Deep Learning Face Attributes in the Wild, ICCV 2015; "
            "Multimedia Laboratory, The Chinese University of Hong Kong"
        ),
        digest=sha256,
    )


def _from_mirrors(
    mirrors: tuple[str, ...], kept: Path, num_bytes: int, sha256: str, pauses: tuple[float, ...]
) -> Generator[Progress, None, None]:
    problems = []
    for mirror in mirrors:
        try:
            yield from transfer(mirror, kept, sha256=sha256, num_bytes=num_bytes, pauses=pauses)
            return
        except TransferError as error:
            problems.append(str(error))
            yield Progress(0, num_bytes, "bytes", f"{shown_url(mirror)} failed")
    raise ValueError(
        f"CelebA came from none of {len(mirrors)} mirrors: {'; '.join(problems)}. Get {FILE_NAME} by hand from {TERMS} "
        "and name it in download.celeba_zip"
    )


def _copy_checked(source: Path, archive: Path, num_bytes: int, sha256: str) -> Generator[Progress, None, None]:
    if not source.is_file():
        raise ValueError(f"download.celeba_zip: {source.absolute()}: no such file")
    if source.stat().st_size != num_bytes:
        raise ValueError(
            f"download.celeba_zip: {source}: has {source.stat().st_size:,} bytes, expected {num_bytes:,} of {FILE_NAME}"
            f"; {_OTHER_ZIP}"
        )
    with archive.open("wb") as copy:
        digest = yield from hashed(source, "copying", copy)
    if digest != sha256:
        raise ValueError(
            f"download.celeba_zip: {source}: its SHA-256 is {digest}, expected {sha256} of {FILE_NAME}; {_OTHER_ZIP}"
        )
