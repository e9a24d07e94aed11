"""Text to a tokenised corpus, in parallel worker processes.

Each part of the sources is tokenised by one worker and committed to `NAME.parts/` as a pair of files,
the second of which makes it count. A run that was killed goes on with the parts that are missing. When
all are there they are joined, in order, into `NAME.bin` and `NAME.idx`; `NAME.json`, written last,
makes the corpus count.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from llmscale.config.problems import InputError, Problem
from llmscale.data.corpus import (
    FORMAT_VERSION,
    CorpusInfo,
    corpus_file,
    token_dtype,
    write_index,
    write_info,
)
from llmscale.data.files import replace_file, sync
from llmscale.data.sources import BadText, Part, SourceOptions, parts_of_sources
from llmscale.data.tokenizer import end_of_document_id, open_encoder, tokenizer_hash, vocabulary_size

BATCH_CHARACTERS = 1 << 20
COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class PartCounts:
    """What one part held."""

    source_bytes: int
    documents: int
    tokens: int
    text_bytes: int
    empty: int
    """Documents without text, left out."""
    not_text: int
    """Documents that are not UTF-8, left out."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    tokenizer: Path
    end_of_document_id: int
    vocabulary_size: int
    folder: Path
    """Where finished parts go."""


@dataclass(frozen=True)
class TokenizeResult:
    info: CorpusInfo
    empty: int
    not_text: int
    resumed_parts: int
    """Parts that an earlier, interrupted run had finished."""


ProgressCallback = Callable[[int, int, PartCounts], None]
"""(source bytes done, source bytes in all, counts so far)."""


def tokenize(
    sources: Sequence[str],
    tokenizer: Path,
    output: Path,
    *,
    workers: int = 1,
    options: SourceOptions | None = None,
    progress: ProgressCallback | None = None,
) -> TokenizeResult:
    """Tokenise `sources` with `tokenizer` into `output`.bin, .idx and .json.

    Raises:
        InputError: for sources or a tokenizer that cannot be read, or an output that exists.
    """
    parts, job = _prepare(sources, tokenizer, output, options or SourceOptions())
    resumed = {number: counts for number in range(len(parts)) if (counts := _committed(job, number))}
    missing = [number for number in range(len(parts)) if number not in resumed]
    total = sum(part.size for part in parts)
    done = _sum_counts(list(resumed.values()))
    if progress:
        progress(done.source_bytes, total, done)
    for counts in _run_parts(parts, missing, job, workers):
        done = _sum_counts([done, counts])
        if progress:
            progress(done.source_bytes, total, done)
    if not done.documents:
        shutil.rmtree(job.folder)
        raise InputError([Problem("INPUT", ", ".join(sources), "holds no text")])
    info = _join(job, len(parts), sources, done, output)
    shutil.rmtree(job.folder)
    return TokenizeResult(info, done.empty, done.not_text, len(resumed))


def _prepare(
    sources: Sequence[str], tokenizer: Path, output: Path, options: SourceOptions
) -> tuple[list[Part], Job]:
    problems: list[Problem] = []
    parts: list[Part] = []
    size = end = 0
    if corpus_file(output, ".json").exists():
        problems.append(Problem("--output", output, "is there already; remove it or choose another path"))
    try:
        parts = parts_of_sources(sources, options)
    except InputError as error:
        problems += error.problems
    try:
        size, end = vocabulary_size(tokenizer), end_of_document_id(tokenizer)
    except InputError as error:
        problems += [Problem("--tokenizer", problem.value, problem.message) for problem in error.problems]
    if problems:
        raise InputError(problems)
    try:
        return parts, Job(tokenizer, end, size, _parts_folder(parts, tokenizer_hash(tokenizer), end, output))
    except OSError as error:
        raise InputError([Problem("--output", output, f"cannot be written: {error}")]) from None


def _parts_folder(parts: list[Part], tokenizer: str, end: int, output: Path) -> Path:
    """The folder of finished parts; emptied where it holds parts of other sources or another tokenizer."""
    folder = corpus_file(output, ".parts")
    described = [FORMAT_VERSION, tokenizer, end, [[type(part).__name__, asdict(part)] for part in parts]]  # type: ignore[call-overload]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    plan = folder / "plan"
    if folder.exists() and not (plan.is_file() and plan.read_text() == fingerprint):
        shutil.rmtree(folder)
    if not folder.exists():
        folder.mkdir(parents=True)
        with replace_file(plan) as file:
            file.write(fingerprint.encode())
    return folder


def _part_file(job: Job, number: int, suffix: str) -> Path:
    return job.folder / f"{number:08d}{suffix}"


def _committed(job: Job, number: int) -> PartCounts | None:
    file = _part_file(job, number, ".npz")
    if not file.exists():
        return None
    with np.load(file) as arrays:
        return PartCounts(*(int(value) for value in arrays["counts"]))


def _run_parts(parts: list[Part], missing: list[int], job: Job, workers: int) -> Iterator[PartCounts]:
    """Counts of each part, as it is committed.

    Raises:
        InputError: at the first part that cannot be read; parts already committed stay.
    """
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    processes = min(workers, len(missing))
    with ProcessPoolExecutor(processes, context, _start_worker, (job.tokenizer,)) as pool:
        running = [pool.submit(_tokenize_part, job, number, parts[number]) for number in missing]
        try:
            for future in as_completed(running):
                counts = future.result()
                if isinstance(counts, str):
                    raise InputError([Problem("INPUT", "", counts)])
                yield counts
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_encoder: Tokenizer | None = None
"""A worker's tokenizer, opened once."""


def _start_worker(tokenizer: Path) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = open_encoder(tokenizer)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _tokenize_part(job: Job, number: int, part: Part) -> PartCounts | str:
    """Tokenise and commit a part; returns its counts, or what is wrong with its source."""
    assert _encoder is not None
    dtype = token_dtype(job.vocabulary_size)
    lengths: list[int] = []
    text_bytes = empty = not_text = 0
    try:
        with replace_file(_part_file(job, number, ".bin")) as file:
            for batch in _batches(part):
                texts = [text for text in batch if text]
                not_text += batch.count(None)
                empty += batch.count("")
                text_bytes += sum(len(text.encode()) for text in texts)
                for encoding in _encoder.encode_batch_fast(texts, add_special_tokens=False):
                    tokens = np.array([*encoding.ids, job.end_of_document_id], dtype)
                    lengths.append(len(tokens))
                    file.write(tokens.tobytes())
    except BadText as error:
        return str(error)
    counts = PartCounts(part.size, len(lengths), sum(lengths), text_bytes, empty, not_text)
    with replace_file(_part_file(job, number, ".npz")) as file:
        np.savez(file, lengths=np.array(lengths, np.int32), counts=np.array(list(asdict(counts).values())))
    return counts


def _batches(part: Part) -> Iterator[list[str | None]]:
    """Documents in groups of about `BATCH_CHARACTERS`."""
    batch: list[str | None] = []
    size = 0
    for text in part.documents():
        batch.append(text if text is None or _is_unicode(text) else None)
        size += len(text or "")
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def _is_unicode(text: str) -> bool:
    """JSON can spell half a surrogate pair, which is not a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sum_counts(counts: Sequence[PartCounts]) -> PartCounts:
    return PartCounts(*(sum(column) for column in zip((0,) * 6, *(asdict(one).values() for one in counts))))


def _join(job: Job, parts: int, sources: Sequence[str], counts: PartCounts, output: Path) -> CorpusInfo:
    dtype: type[np.integer[Any]] = token_dtype(job.vocabulary_size)
    lengths: list[np.ndarray] = []
    with replace_file(corpus_file(output, ".bin")) as joined:
        for number in range(parts):
            with np.load(_part_file(job, number, ".npz")) as arrays:
                lengths.append(arrays["lengths"])
            with _part_file(job, number, ".bin").open("rb") as part:
                shutil.copyfileobj(part, joined, COPY_BYTES)
        bin_bytes = joined.tell()
    with replace_file(corpus_file(output, ".idx")) as file:
        idx_bytes = write_index(file, lengths, dtype)
    if bin_bytes != counts.tokens * np.dtype(dtype).itemsize:
        raise RuntimeError(f"the parts hold {bin_bytes} bytes for {counts.tokens} tokens")
    info = CorpusInfo(
        tokenizer_hash=tokenizer_hash(job.tokenizer),
        vocabulary_size=job.vocabulary_size,
        end_of_document_id=job.end_of_document_id,
        documents=counts.documents,
        tokens=counts.tokens,
        text_bytes=counts.text_bytes,
        sources=list(sources),
        bin_bytes=bin_bytes,
        idx_bytes=idx_bytes,
    )
    with replace_file(corpus_file(output, ".json")) as file:
        write_info(info, file)
    sync(output.parent)
    return info
