"""What compresses the chunks of a Zarr store, without loss: zstd, which every reader of Zarr knows, or pcodec, which is made
for numbers, is smaller and needs a package of its own. A CRC32C of the compressed bytes stands behind each chunk."""

from __future__ import annotations

import warnings
from typing import Any

from numpy.typing import NDArray

from bird_cache.errors import MissingCodecError
from bird_cache.manifest import Compress

__all__ = ["decompress", "zarr_codecs"]

LEVELS = {"zstd": 3, "pcodec": 4}
"""higher ones cost more time than they save bytes: bench/compress.py"""


def zarr_codecs(compress: Compress) -> dict[str, Any]:
    """The codecs of a chunk, as `zarr.create_array` takes them. Raises MissingCodecError."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    if compress == "zstd":
        return {"compressors": (ZstdCodec(level=LEVELS["zstd"]), Crc32cCodec())}
    if compress == "pcodec":
        _pcodec()
        from zarr.codecs.numcodecs import PCodec

        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        return {"serializer": PCodec(level=LEVELS["pcodec"]), "compressors": (Crc32cCodec(),)}
    return {"compressors": (Crc32cCodec(),)}


def decompress(data: memoryview, compress: Compress, out: NDArray[Any]) -> None:
    """Fill `out`, which bounds what is allocated, from a chunk's bytes. Raises ValueError, MissingCodecError."""
    try:
        if compress == "zstd":
            from numcodecs.zstd import Zstd

            Zstd().decode(data, out=out)
            return
        done = _pcodec().simple_decompress_into(bytes(data), out.reshape(-1))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if not done.finished or done.n_processed != out.size:
        raise ValueError("a chunk of another size than planned")


def _pcodec() -> Any:
    try:
        from pcodec import standalone
    except ImportError as error:
        raise MissingCodecError(
            where="compression by pcodec",
            found="no package pcodec",
            wanted="the package that reads and writes such chunks",
            fix="pip install 'bird-cache[pcodec]', or use --compress zstd",
        ) from error
    return standalone
