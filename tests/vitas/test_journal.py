"""Journals survive any death of their writer, and tell what was changed in them."""

import json
import re

import pytest

from vitas.errors import UserError
from vitas.journal import Journal

RECORDS = [{"architecture": "p4-e8-token-id", "top1": 90.5}, {"text": "two\nlines, ü"}, {}]


def test_a_journal_reads_back_what_was_appended(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    journal = Journal(path)
    assert journal.lines == []
    assert not path.exists()
    journal.append(*RECORDS[:2])
    journal.append(RECORDS[2])
    assert journal.lines == Journal(path).lines == RECORDS


def test_a_journal_cut_anywhere_keeps_its_whole_lines_and_grows_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append(*RECORDS)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = RECORDS[: whole[:length].count(b"\n")]
        journal = Journal(path)
        assert journal.lines == kept
        journal.append({"last": length})
        assert Journal(path).lines == [*kept, {"last": length}]


def test_no_changed_bit_of_a_journal_changes_what_its_records_say(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append(*RECORDS)
    whole, refused = path.read_bytes(), []
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            lines = Journal(path).lines
        except UserError as error:
            refused.append(str(error))
            continue
        # Without its end, the last line counts as half written; a changed name of the checksum is one more key.
        assert len(lines) >= len(RECORDS) - 1
        assert all(record.items() <= line.items() for record, line in zip(RECORDS, lines, strict=False))
    assert len(refused) > 0.7 * 8 * len(whole)
    assert all(re.search(r"journal\.jsonl: line [123] ", message) for message in refused)


def test_a_journal_without_checksums_and_a_line_whose_checksum_was_removed_are_read(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"a": 1}\n')
    Journal(path).append({"b": 2})
    assert json.loads(path.read_text().splitlines()[1]).keys() == {"b", "crc32"}
    path.write_text(path.read_text() + '{"c": 3}\n')
    assert Journal(path).lines == [{"a": 1}, {"b": 2}, {"c": 3}]


@pytest.mark.parametrize("broken", [b'{"top1": ', b"", b"\xff\xfe", b'{"a": 1}{"b": 2}'])
def test_a_journal_with_a_broken_line_within_is_refused_by_number_and_left_alone(tmp_path, broken):
    path = tmp_path / "journal.jsonl"
    content = b'{"a": 1}\n' + broken + b'\n{"c": 3}\n{"torn'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"journal\.jsonl: line 2 "):
        Journal(path)
    assert path.read_bytes() == content


def test_a_journal_on_a_full_disk_says_so_and_keeps_its_whole_lines(small_disk):
    journal = Journal(small_disk / "scores.jsonl")
    journal.append({"step": 1})
    with pytest.raises(UserError, match=r"scores\.jsonl cannot be written.*No space left"):
        journal.append({"text": "x" * 4_000_000})
    assert Journal(small_disk / "scores.jsonl").lines == [{"step": 1}]
