"""A path as written in a `load` -> the files it means, and each file -> plain UTF-8 text on disk.

Globs, braces, folders and comma lists are expanded here, and every single match goes through the guard again, since
a match may be a link. Compressed and foreign encodings are rewritten, streaming, into a temporary file. Knows
nothing of JSON, CSV, tables or engines.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import lzma
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from byzer_ft.errors import DataError, NotFoundError, NotSupportedError, OptionError, did_you_mean, listing
from byzer_ft.paths import PathGuard

CHUNK = 1 << 20
Notice = Callable[[str], None]

_GLOB = re.compile(r"[*?\[{]")
_BOMS = (  # longest first: a UTF-32 mark begins with the UTF-16 one
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))


@dataclass(frozen=True)
class InputFile:
    """One file to read: its real path, and the values that folders named `key=value` above it stand for."""

    path: str
    partitions: tuple[tuple[str, str | None], ...] = ()


def expand(spec: str, guard: PathGuard, *, what: str = "path") -> list[InputFile]:
    """The files that `spec` means, sorted by name within each folder or glob. Never empty."""
    if not spec.strip():
        raise NotFoundError(f"{what}: no path is given", hint="write it in back-quotes: load json.`data/rows.jsonl` …")
    parts = [spec]
    if "," in spec and not _exists(guard.resolve(spec, what=what)):
        parts = [part.strip() for part in _split_commas(spec) if part.strip()]
    return [found for part in parts for found in _expand_one(part, guard, what)]


def _expand_one(part: str, guard: PathGuard, what: str) -> Iterator[InputFile]:
    real = guard.resolve(part, what=what)
    if "://" in real:
        raise NotSupportedError(
            f"{what} {part!r}: files in an object store cannot be read yet", hint="copy them to a local or shared path"
        )
    if _exists(real):
        files = list(_walk(real, guard, what))
        if not files:
            raise NotFoundError(f"folder {part!r} holds no data files", hint="names that begin with . or _ are skipped")
        yield from files
        return
    if not _GLOB.search(real):
        raise NotFoundError(f"no file or folder {part!r}", hint=nearest(real, guard))
    matches = sorted({m for pattern in _braces(real) for m in glob.glob(pattern, recursive=True)})
    found = (file for m in matches for file in _walk(guard.resolve(m, what=what), guard, what))
    files = list({file.path: file for file in found}.values())  # `**` matches a folder and what is in it
    if not files:
        plain = re.split(r"[*?\[{]", real, maxsplit=1)[0]
        raise NotFoundError(f"no file matches {part!r}", hint=nearest(plain + "*", guard))
    yield from files


def _walk(real: str, guard: PathGuard, what: str) -> Iterator[InputFile]:
    """The regular files at or below `real`; links are followed only as far as the guard allows."""
    if not Path(real).is_dir():
        _check_regular(real)
        yield InputFile(real)
        return
    seen = {real}

    def below(folder: str, partitions: tuple[tuple[str, str | None], ...]) -> Iterator[InputFile]:
        for name in sorted(os.listdir(folder)):
            if name.startswith((".", "_")) and "=" not in name:
                continue
            target = guard.resolve(str(Path(folder) / name), what=what)
            if Path(target).is_dir():
                if target not in seen:
                    seen.add(target)
                    yield from below(target, (*partitions, *_partition(name)))
            else:
                _check_regular(target)
                yield InputFile(target, partitions)

    try:
        yield from below(real, ())
    except PermissionError as error:
        raise NotFoundError(f"{error.filename!r} cannot be read: permission denied") from None


def _partition(folder: str) -> tuple[tuple[str, str | None], ...]:
    key, equals, value = folder.partition("=")
    if not equals or not key:
        return ()
    value = unquote(value)
    return ((unquote(key), None if value == "__HIVE_DEFAULT_PARTITION__" else value),)


def _exists(real: str) -> bool:
    return "://" not in real and os.path.lexists(real)


def _check_regular(real: str) -> None:
    """A pipe or a device would hang the reader."""
    try:
        mode = Path(real).stat().st_mode
    except OSError as error:
        raise NotFoundError(f"{real!r} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{real!r} is not a regular file")
    if not os.access(real, os.R_OK):
        raise NotFoundError(f"{real!r} cannot be read: permission denied")


def nearest(real: str, guard: PathGuard) -> str:
    """What stands in the nearest existing folder, as a hint."""
    folder = Path(real)
    missing = folder.name
    folder = folder.parent
    while not folder.is_dir() and folder != folder.parent:
        missing, folder = folder.name, folder.parent
    guard.resolve(str(folder))
    try:
        names = [n for n in os.listdir(folder) if not n.startswith(".")]
    except OSError:
        return f"{folder} cannot be listed"
    near = did_you_mean(missing, names)
    return (near + "\n" if near else "") + f"{folder} holds: {listing(names)}"


def _split_commas(spec: str) -> list[str]:
    """Commas inside braces belong to the glob."""
    return re.split(r",(?![^{]*\})", spec)


def _braces(pattern: str) -> list[str]:
    """`a{b,c}` -> `ab`, `ac`, as Hadoop's globs do."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [out for choice in match[1].split(",") for out in _braces(head + choice + tail)]


# ------------------------------------------------------------------------------------------------ bytes to UTF-8


def plain_utf8(path: str, encoding: str, work: Path, notice: Notice) -> str:
    """A path whose content is `path`'s as plain UTF-8 without a mark: `path` itself, checked, or a copy in `work`."""
    name = _codec(encoding)
    compression = _compression(path)
    with _opened(path, compression) as stream:
        head = _read(stream, 4, path)
        marked = next((codec for bom, codec in _BOMS if head.startswith(bom)), None)
        if marked and name == "utf-8":
            if marked != "utf-8-sig":
                notice(f"{path}: read as {marked}, as its byte order mark says")
            name = marked
        copy = bool(compression) or name != "utf-8"
        if not copy:
            _recode(head, stream, name, path, None)
            return _unglobbed(path, work)
        target = work / f"plain-{len(os.listdir(work))}.txt"  # a .gz in the name would mislead the reader
        with target.open("wb") as out:
            _recode(head, stream, name, path, out)
    return str(target)


def _codec(encoding: str) -> str:
    try:
        info: Any = codecs.lookup(encoding.strip())
    except LookupError:
        known = ("utf-8", "utf-16", "gb18030", "gbk", "big5", "latin-1", "shift_jis", "euc-kr")
        raise OptionError(
            f"encoding {encoding!r} is not known",
            hint=did_you_mean(encoding, known) or "for example utf-8, utf-16, gb18030, big5, latin-1",
        ) from None
    if not getattr(info, "_is_text_encoding", True) or info.name in ("undefined", "idna", "punycode"):
        raise OptionError(f"encoding {encoding!r} is not a text encoding", hint="for example utf-8, utf-16, gb18030")
    # gb18030 reads all that gbk and gb2312 can, and what programs that say gbk really write
    return "gb18030" if info.name in ("gbk", "gb2312") else str(info.name)


def _compression(path: str) -> str | None:
    with Path(path).open("rb") as stream:
        head = stream.read(8)
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def _opened(path: str, compression: str | None) -> Any:
    if compression == "gzip":
        return gzip.open(path, "rb")
    if compression == "bzip2":
        return bz2.open(path, "rb")
    if compression == "xz":
        return lzma.open(path, "rb")
    if compression == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(path, "zstd")
    return Path(path).open("rb")


def _read(stream: IO[bytes], size: int, path: str) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: the compressed data is damaged: {error}") from None


def _recode(head: bytes, stream: IO[bytes], name: str, path: str, out: IO[bytes] | None) -> None:
    """Decodes all of `stream`, writing UTF-8 to `out` if there is one. Raises DataError with the byte position."""
    decoder = codecs.getincrementaldecoder(name)("strict")
    fed, block = 0, head
    while True:
        fed += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _undecodable(path, name, fed - len(error.object) + error.start, error) from None
        except UnicodeError as error:
            raise DataError(f"{path}: not {name}: {error}") from None
        if out is not None:
            out.write(text.encode("utf-8", "surrogatepass" if name.startswith("utf-16") else "strict"))
        if not block:
            return
        block = _read(stream, CHUNK, path)


def _undecodable(path: str, name: str, position: int, error: UnicodeDecodeError) -> DataError:
    sample = bytes(error.object[error.start : error.start + 64])
    hint = 'say how it is encoded, for example where encoding="latin-1"'
    if name == "utf-8":
        try:
            codecs.getincrementaldecoder("gb18030")("strict").decode(sample, final=False)
            hint = 'if it is GBK or GB18030, load it with where encoding="gb18030"'
        except UnicodeDecodeError:
            pass
    return DataError(f"{path}: byte {position} ({sample[:1].hex()}) is not valid {name}", hint=hint)


def _unglobbed(path: str, work: Path) -> str:
    """The reader library takes `*`, `?` and `[` in a name as a glob: such a file is read through a link."""
    if not re.search(r"[*?\[\]]", path):
        return path
    link = work / f"link-{len(os.listdir(work))}{Path(path).suffix}"
    link.symlink_to(path)
    return str(link)
