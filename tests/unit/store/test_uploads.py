# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BlobUploadUnknown, UploadConflict
from shoal.store.uploads import UploadSession, UploadSessions


@pytest.fixture
def sessions(tmp_path: Path) -> UploadSessions:
    return UploadSessions(tmp_path / "uploads")


def begin(sessions: UploadSessions, content: bytes = b"half of ") -> UploadSession:
    session = sessions.open(sessions.start())
    assert session is not None
    with session.exclusive() as writer:
        writer.append([content])
    return session


def test_a_session_grows_over_several_requests(sessions: UploadSessions) -> None:
    session = begin(sessions)
    again = sessions.open(session.id)
    assert again is session
    with again.exclusive() as writer:
        writer.append([b"a blob"])
        assert writer.digest() == Digest.of(b"half of a blob")
    assert session.size == 14
    assert session.path.read_bytes() == b"half of a blob"


def test_a_session_survives_a_restart(sessions: UploadSessions, tmp_path: Path) -> None:
    before = begin(sessions)
    after = UploadSessions(tmp_path / "uploads").open(before.id)
    assert after is not None
    assert after is not before
    assert after.size == 8
    with after.exclusive() as writer:
        writer.append([b"a blob"])
        assert writer.digest() == Digest.of(b"half of a blob")
    assert before.path.read_bytes() == b"half of a blob"


def test_a_session_hashes_with_the_algorithm_it_was_begun_with(
    sessions: UploadSessions, tmp_path: Path
) -> None:
    started = sessions.start("sha512")
    before = sessions.open(started)
    assert before is not None
    with before.exclusive() as writer:
        writer.append([b"half of "])
    after = UploadSessions(tmp_path / "uploads").open(started)
    assert after is not None
    with after.exclusive() as writer:
        writer.append([b"a blob"])
    for algorithm in ("sha512", "sha256"):
        assert after.writer.digest(algorithm) == Digest.of(b"half of a blob", algorithm)
    after.path.write_bytes(b"other bytes")
    assert after.writer.digest("sha512") == Digest.of(b"half of a blob", "sha512")
    assert sessions.discard(started)
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("algorithm", ["", "md5", "sha256/../../x", "SHA512"])
def test_an_algorithm_that_is_none_begins_nothing(
    sessions: UploadSessions, tmp_path: Path, algorithm: str
) -> None:
    with pytest.raises(ValueError, match="none of sha256, sha512"):
        sessions.start(algorithm)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_session_of_an_earlier_process_is_discarded_unopened(
    sessions: UploadSessions, tmp_path: Path
) -> None:
    for algorithm in ("sha256", "sha512"):
        assert UploadSessions(tmp_path / "uploads").discard(sessions.start(algorithm))
    assert list((tmp_path / "uploads").iterdir()) == []


def test_the_second_writer_is_turned_away_at_once(sessions: UploadSessions) -> None:
    session = begin(sessions)
    with session.exclusive():
        with pytest.raises(UploadConflict, match=session.id), session.exclusive():
            pass
        assert session.busy
    with session.exclusive():
        pass


@pytest.mark.parametrize(
    "session_id",
    ["", "x", "../" + "0" * 29, "0" * 31, "0" * 33, "0" * 32 + "\n", "G" * 32, "/etc/passwd"],
)
def test_an_id_that_is_none_never_touches_a_path(
    sessions: UploadSessions, tmp_path: Path, session_id: str
) -> None:
    (tmp_path / "x").write_text("keep")
    assert sessions.open(session_id) is None
    assert sessions.discard(session_id) is False
    assert (tmp_path / "x").exists()


def test_an_unknown_session_is_none(sessions: UploadSessions) -> None:
    assert sessions.open("0" * 32) is None
    assert sessions.discard("0" * 32) is False


def test_discard_ends_a_session_for_those_who_still_hold_it(sessions: UploadSessions) -> None:
    session = begin(sessions)
    assert sessions.discard(session.id) is True
    assert not session.path.exists()
    assert sessions.open(session.id) is None
    with pytest.raises(BlobUploadUnknown, match="has ended"), session.exclusive():
        pass
    assert not session.busy


def test_a_discarded_session_holds_no_descriptor(sessions: UploadSessions) -> None:
    session = sessions.open(sessions.start())
    assert session is not None
    before = len(os.listdir("/proc/self/fd"))
    session.writer.append([b"a manifest"])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    sessions.discard(session.id)
    assert len(os.listdir("/proc/self/fd")) == before


def test_discard_leaves_the_file_open_to_the_request_that_is_writing(
    sessions: UploadSessions,
) -> None:
    session = begin(sessions)
    before = len(os.listdir("/proc/self/fd"))
    with session.exclusive() as writer:
        writer.append([b"more "])
        sessions.discard(session.id)
        writer.append([b"and more"])
        assert session.size == len(b"half of more and more")
    assert len(os.listdir("/proc/self/fd")) == before


def test_discard_is_content_when_the_file_was_adopted(sessions: UploadSessions) -> None:
    session = begin(sessions)
    session.path.rename(session.path.with_name("elsewhere"))
    assert sessions.discard(session.id) is True


def test_sessions_that_nobody_wrote_to_expire(sessions: UploadSessions, tmp_path: Path) -> None:
    old, busy, new = begin(sessions), begin(sessions), begin(sessions)
    stranger = tmp_path / "uploads" / "notes"
    stranger.write_text("keep")
    now = time.time()
    for path in (old.path, busy.path, stranger):
        os.utime(path, (now - 100, now - 100))
    with busy.exclusive():
        assert sessions.expire(now, 60) == [old.id]
    assert sessions.open(old.id) is None
    assert sessions.open(busy.id) is busy
    assert sessions.open(new.id) is new
    assert stranger.exists()


def test_leftovers_of_an_earlier_process_expire_too(
    sessions: UploadSessions, tmp_path: Path
) -> None:
    session = begin(sessions)
    fresh = UploadSessions(tmp_path / "uploads")
    assert fresh.expire(time.time() + 100, 60) == [session.id]
    assert not session.path.exists()
