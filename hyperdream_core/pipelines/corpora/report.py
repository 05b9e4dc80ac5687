"""What is in a corpus, as JSON values and as lines a person reads: counts, sources, rejects, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .corpus import PARTS, Corpus

_SHOWN = 20
"""rejected pictures that are named in the text; the JSON has all"""


def report_of(corpus: Corpus) -> dict[str, Any]:
    """Everything that a person asks of a corpus, as JSON values."""
    parts = {}
    for part in PARTS:
        record = corpus.parts.get(part)
        there = len(corpus.finished(part))
        parts[part] = {
            "shards": there,
            "of": corpus.manifest.shards,
            "bytes": record.bytes if record is not None else 0,
            "made_by": dict(record.facts) if record is not None else {},
        }
    manifest = corpus.manifest
    return {
        "folder": str(corpus.folder),
        "subjects": len(corpus),
        "references": int(corpus.reference_counts.sum()),
        "pictures": int(corpus.picture_counts.sum()),
        "captions": sum(bool(caption) for one in corpus.subjects for caption in one.captions),
        "held_out": len(corpus.held_out),
        "pictures_each": _counted(len(one.pictures) for one in corpus.subjects),
        "size": manifest.size,
        "class_noun": manifest.class_noun,
        "licence": manifest.licence,
        "sources": [dict(one) for one in manifest.sources],
        "parts": parts,
        "rejected": [{"what": one.what, "why": one.why} for one in corpus.rejected],
    }


def text_of(report: Mapping[str, Any]) -> str:
    """The report as lines a person reads."""
    each = ", ".join(f"{count:,} have {pictures}" for pictures, count in report["pictures_each"].items())
    lines = [
        f"{report['folder']}: {report['subjects']:,} subjects ({report['held_out']:,} held out), each a "
        f"{report['class_noun']}",
        f"{report['pictures']:,} pictures of {report['size']} px, {report['captions']:,} of them with a caption, and "
        f"{report['references']:,} references",
        f"pictures of a subject: {each or 'none'}",
        f"licence or consent: {report['licence'] or 'not said'}",
    ]
    lines += [f"from {_said(source)}" for source in report["sources"]]
    for name, part in report["parts"].items():
        if not part["shards"]:
            lines.append(f"{name}: none")
            continue
        rest = "" if part["shards"] == part["of"] else f" of {part['of']}: the same command goes on from there"
        lines.append(f"{name}: {part['shards']} shards{rest}, {part['bytes'] / 1e6:,.1f} MB{_maker(part['made_by'])}")
    rejected = report["rejected"]
    lines.append(f"rejected: {len(rejected)}")
    lines += [f"  {one['what']}: {one['why']}" for one in rejected[:_SHOWN]]
    if len(rejected) > _SHOWN:
        lines.append(f"  and {len(rejected) - _SHOWN} more; --json names all")
    return "\n".join(lines)


def _counted(numbers: Iterable[int]) -> dict[str, int]:
    """How often each number is there, by the number."""
    return {str(number): count for number, count in sorted(Counter(numbers).items())}


def _said(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in source.items() if value not in ("", None))


def _maker(facts: Mapping[str, Any]) -> str:
    named = {"family": "base", "fingerprint": "fingerprint", "name": "image encoder", "encoder": "digest"}
    said = [f"{text} {str(facts[key])[:12]}" for key, text in named.items() if key in facts]
    return f", by {', '.join(said)}" if said else ""
