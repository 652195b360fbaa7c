// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! The write-ahead log against crashes, damage and a full disk: on real
//! files, with images of the directory as a stop at any moment leaves them,
//! and with a real process that is killed.

use crate::dir::{Dir, Tmpfs};
use bytes::Bytes;
use common::fs::{NodeId, Time};
use openraft::alias::LeaderIdOf;
use openraft::storage::{IOFlushed, LeaderBoundedStreamError, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use raftd::fs::op::{Command, Op};
use raftd::payload::{At, Payload};
use raftd::raft::{Entry, EntryPayload, LogId, TypeConfig, Vote};
use raftd::store::log_store::{LogStore, Options};
use raftd::store::wal::{self, Index, Kind, Record, Replayed, SegmentId, Wal, WalError, Written};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{mpsc, Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

mod dir;

/// No mark of its own within the life of a test.
const NEVER: Duration = Duration::from_secs(3600);
const LIMIT: Duration = Duration::from_secs(60);

/// All files of a log.
type Image = BTreeMap<PathBuf, Vec<u8>>;

fn image(dir: &Path) -> Image {
    let mut image = Image::new();
    for dirent in fs::read_dir(dir).unwrap() {
        let path = dirent.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        // A spare in the making may be renamed meanwhile.
        if let Ok(bytes) = fs::read(&path) {
            if name != Path::new("new") {
                image.insert(name, bytes);
            }
        }
    }
    image
}

fn restore(image: &Image) -> Dir {
    let dir = Dir::new("image");
    for (name, bytes) in image {
        fs::write(dir.0.join(name), bytes).unwrap();
    }
    dir
}

fn small() -> Options {
    Options {
        wal: wal::Options {
            segment_size: 64 << 10,
            idle: NEVER,
            fail_sync_after: None,
        },
        cache_bytes: 0,
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}");
        thread::yield_now();
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader_id: LeaderIdOf::<TypeConfig> {
            term,
            node_id: NodeId(1),
        },
        index,
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        leader_id: log_id(term, 0).leader_id,
        committed: true,
    }
}

/// Bytes that belong to one index and one term only.
fn contents(term: u64, index: u64, len: usize) -> Bytes {
    let mut x = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ term << 32 | 1;
    let bytes = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    });
    bytes.take(len).collect()
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let command = Command {
        origin: None,
        time: Time {
            sec: index as i64,
            nsec: 0,
        },
        op: Op::Nop,
        payload: Payload::new(contents(term, index, len)),
    };
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(command),
    }
}

/// The entry must be what `entry` made, to the last byte.
fn check(entry: &Entry, index: u64) -> u64 {
    assert_eq!(entry.log_id.index, index);
    let EntryPayload::Normal(command) = &entry.payload else {
        panic!("entry {index} is of another kind");
    };
    assert_eq!(command.time.sec, index as i64);
    let bytes = command.payload.bytes().unwrap();
    let term = entry.log_id.leader_id.term;
    assert_eq!(bytes, contents(term, index, bytes.len()));
    term
}

/// Drives a future that never has to wait for another task.
fn block<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Appends without waiting for the disk.
fn start_append(log: &mut LogStore, entries: Vec<Entry>) -> impl Future<Output = io::Result<()>> {
    let (done, wait) = TypeConfig::oneshot();
    block(log.append(entries, IOFlushed::signal(done))).unwrap();
    async { wait.await.unwrap() }
}

fn append(log: &mut LogStore, entries: Vec<Entry>) {
    block(start_append(log, entries)).unwrap();
}

fn read(log: &mut LogStore) -> Vec<Entry> {
    block(async { log.get_log_reader().await.try_get_log_entries(..).await }).unwrap()
}

fn last_index(log: &mut LogStore) -> Option<u64> {
    let state = block(log.get_log_state()).unwrap();
    state.last_log_id.map(|id| id.index)
}

/// Checks every entry of the log; the terms by index.
fn check_all(log: &mut LogStore) -> BTreeMap<u64, u64> {
    let entries = read(log);
    let indexes = entries.iter().map(|entry| entry.log_id.index);
    let terms: BTreeMap<u64, u64> = indexes
        .zip(&entries)
        .map(|(index, entry)| (index, check(entry, index)))
        .collect();
    assert_eq!(terms.len(), entries.len());
    terms
}

fn open(dir: &Dir) -> LogStore {
    LogStore::open_with(&dir.0, &small()).unwrap()
}

/// For tests of the log alone.
struct Nobody;

impl Index for Nobody {
    fn recovered(&self, _: &Replayed<'_>) -> bool {
        true
    }

    fn flushed(&self, _: &[Written]) {}
}

#[test]
fn one_flush_for_all_that_wait() {
    const WRITERS: u64 = 64;
    const EACH: u64 = 25;
    let dir = Dir::new("group");
    let opts = wal::Options {
        segment_size: 1 << 20,
        idle: NEVER,
        fail_sync_after: None,
    };
    let wal = Wal::open(&dir.0, &opts, Arc::new(Nobody)).unwrap();
    let start = Barrier::new(WRITERS as usize);
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..EACH {
                    let (done, wait) = mpsc::channel();
                    let mut record = Record::new(Kind::Vote, 0, vec![7; 16]);
                    record.done = Some(Box::new(move |result| done.send(result).unwrap()));
                    wal.push(vec![record]).unwrap();
                    wait.recv().unwrap().unwrap();
                }
            });
        }
    });
    let stats = wal.stats();
    println!("{} records, {} flushes", WRITERS * EACH, stats.flushes);
    assert_eq!(stats.flushes, stats.groups);
    assert!(stats.flushes * 8 <= WRITERS * EACH, "{stats:?}");
    wait_until("queue is empty", || wal.queued_bytes() == 0);
}

#[test]
fn a_lone_append_costs_one_flush() {
    let dir = Dir::new("lone");
    let mut log = open(&dir);
    append(&mut log, vec![entry(1, 0, 0)]);
    let before = log.stats();
    for index in 1..=8 {
        append(&mut log, vec![entry(1, index, 4096)]);
    }
    let after = log.stats();
    assert_eq!(after.flushes - before.flushes, 8);
    assert_eq!(after.payload - before.payload, 8 * 4096);
    // The page a record begins in and those it goes on in.
    assert!(after.written - before.written <= 8 * 3 * 4096);
}

#[test]
fn everything_is_there_after_reopening() {
    let dir = Dir::new("reopen");
    let sizes = [0, 1, 7, 8, 511, 1023, 1024, 4096, 9999, 30_000];
    let mut log = open(&dir);
    assert!(log.recovered().last.is_none());
    block(log.save_vote(&vote(3))).unwrap();
    for round in 0..5 {
        let index = |i: usize| round * sizes.len() as u64 + i as u64;
        let entries = sizes.iter().enumerate();
        let entries = entries.map(|(i, len)| entry(3, index(i), *len)).collect();
        append(&mut log, entries);
    }
    block(log.save_committed(Some(log_id(3, 40)))).unwrap();
    append(&mut log, vec![entry(3, 50, 100)]);
    assert_eq!(*log.flushed().borrow(), 50);
    drop(log);
    // With and without a clean stop before.
    for _ in 0..3 {
        let mut log = open(&dir);
        let recovered = log.recovered().clone();
        assert_eq!(recovered.first, Some(0));
        assert_eq!(recovered.last, Some(log_id(3, 50)));
        assert_eq!(recovered.vote, Some(vote(3)));
        assert_eq!(recovered.committed, Some(log_id(3, 40)));
        assert_eq!(*log.flushed().borrow(), 50);
        assert_eq!(check_all(&mut log).len(), 51);
    }
}

/// A node that stands still knows after a crash what it knew to be committed.
#[test]
fn a_commit_that_comes_late_reaches_the_disk() {
    let dir = Dir::new("late");
    let mut opts = small();
    opts.wal.idle = Duration::from_millis(1);
    let mut log = LogStore::open_with(&dir.0, &opts).unwrap();
    append(&mut log, vec![entry(1, 0, 100), entry(1, 1, 100)]);
    let committed = |log: &LogStore| log.recovered().committed;
    for index in 0..2 {
        block(log.save_committed(Some(log_id(1, index)))).unwrap();
        wait_until("the commit index is on disk", || {
            let copy = restore(&image(&dir.0));
            committed(&open(&copy)) == Some(log_id(1, index))
        });
    }
    drop(log);
}

#[test]
fn entries_can_be_read_before_they_are_written() {
    let dir = Dir::new("before");
    let mut log = open(&dir);
    let done: Vec<_> = (0..200)
        .map(|index| start_append(&mut log, vec![entry(1, index, 2000)]))
        .collect();
    assert_eq!(check_all(&mut log).len(), 200);
    for done in done {
        block(done).unwrap();
    }
    // The cache is of size zero: nothing is left in memory.
    let entries = read(&mut log);
    for (index, entry) in entries.iter().enumerate() {
        check(entry, index as u64);
        let EntryPayload::Normal(command) = &entry.payload else {
            panic!("a blank entry");
        };
        assert!(matches!(command.payload.at, At::Log { .. }));
    }
}

#[test]
fn batches_are_bounded_by_bytes() {
    let dir = Dir::new("batch");
    let mut opts = small();
    opts.wal.segment_size = 4 << 20;
    let mut log = LogStore::open_with(&dir.0, &opts).unwrap();
    let entries = (0..40).map(|index| entry(1, index, 100_000)).collect();
    append(&mut log, entries);
    let mut reader = block(log.get_log_reader());
    let batch = block(reader.limited_get_log_entries(0, 40)).unwrap();
    assert_eq!(batch.len(), 10);
    let mut next = 0;
    let mut stream = pin!(block(reader.entries_stream(0..40)));
    while let Some(entry) = block(futures_util::StreamExt::next(&mut stream)) {
        check(&entry.unwrap(), next);
        next += 1;
    }
    assert_eq!(next, 40);
}

/// A peer takes what it gets for what follows the entry before.
#[test]
fn nothing_is_sent_behind_a_hole() {
    let dir = Dir::new("hole");
    let mut log = open(&dir);
    append(&mut log, (0..20).map(|i| entry(1, i, 10)).collect());
    block(log.purge(log_id(1, 9))).unwrap();
    let mut reader = block(log.get_log_reader());
    let mut sent = |start| {
        let batch = block(reader.limited_get_log_entries(start, 20)).unwrap();
        batch.first().map(|entry| entry.log_id.index)
    };
    assert_eq!(sent(5), None);
    assert_eq!(sent(9), None);
    assert_eq!(sent(10), Some(10));
}

#[test]
fn a_new_vote_ends_the_leaders_stream() {
    let dir = Dir::new("leader");
    let mut opts = small();
    opts.wal.segment_size = 4 << 20;
    let mut log = LogStore::open_with(&dir.0, &opts).unwrap();
    let entries = (0..40).map(|index| entry(1, index, 100_000)).collect();
    append(&mut log, entries);
    block(log.save_vote(&vote(1))).unwrap();
    let mut reader = block(log.get_log_reader());
    let leader = log_id(1, 0).leader_id;
    let mut stream = pin!(block(reader.leader_bounded_stream(leader, 0..40)));
    let mut next = || block(futures_util::StreamExt::next(&mut stream));
    check(&next().unwrap().unwrap(), 0);
    block(log.save_vote(&vote(2))).unwrap();
    assert!(matches!(
        next(),
        Some(Err(LeaderBoundedStreamError::LeaderChanged(_)))
    ));
}

#[test]
fn truncated_entries_stay_away() {
    let dir = Dir::new("truncate");
    let mut log = open(&dir);
    append(&mut log, (0..60).map(|i| entry(1, i, 1500)).collect());
    block(log.truncate_after(Some(log_id(1, 20)))).unwrap();
    assert_eq!(*log.flushed().borrow(), 20);
    append(&mut log, (21..30).map(|i| entry(2, i, 1500)).collect());
    assert_eq!(*log.flushed().borrow(), 29);
    // What was queued when it was truncated does not count as flushed.
    let old = start_append(&mut log, vec![entry(2, 30, 100)]);
    block(log.truncate_after(Some(log_id(2, 29)))).unwrap();
    let new = start_append(&mut log, vec![entry(4, 30, 200)]);
    block(old).unwrap();
    block(new).unwrap();
    drop(log);
    let mut log = open(&dir);
    let terms = check_all(&mut log);
    assert_eq!(terms.len(), 31);
    for (index, term) in terms {
        assert_eq!(
            term,
            match index {
                0..=20 => 1,
                21..=29 => 2,
                _ => 4,
            }
        );
    }
    block(log.truncate_after(None)).unwrap();
    append(&mut log, vec![entry(5, 0, 10)]);
    drop(log);
    assert_eq!(check_all(&mut open(&dir)).len(), 1);
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let dir = Dir::new("torn");
    let mut log = open(&dir);
    append(&mut log, (0..5).map(|i| entry(1, i, 300)).collect());
    let before = image(&dir.0);
    append(&mut log, vec![entry(1, 5, 200), entry(1, 6, 0)]);
    let after = image(&dir.0);
    drop(log);
    let name = PathBuf::from("000001");
    let (old, new) = (&before[&name], &after[&name]);
    let differs = |i: &usize| old[*i] != new[*i];
    let first = (0..new.len()).find(differs).unwrap();
    let last = (0..new.len()).rfind(differs).unwrap();
    let mut most = 0;
    for cut in first..=last + 1 {
        let mut torn = after.clone();
        let tail = if cut % 2 == 0 {
            &old[cut..]
        } else {
            &[0xa5; 300][..]
        };
        let bytes = torn.get_mut(&name).unwrap();
        let end = bytes.len().min(cut + tail.len());
        bytes[cut..end].copy_from_slice(&tail[..end - cut]);
        let dir = restore(&torn);
        let mut log = open(&dir);
        let there = check_all(&mut log).len();
        // More bytes, not fewer entries.
        assert!(there >= 5 && there >= most, "cut at {cut}: {there}");
        most = there;
        append(&mut log, vec![entry(2, there as u64, 50)]);
        drop(log);
        assert_eq!(check_all(&mut open(&dir)).len(), there + 1);
    }
    assert_eq!(most, 7);
}

#[test]
fn a_flipped_bit_below_the_mark_is_named() {
    let dir = Dir::new("rot");
    let mut log = open(&dir);
    append(&mut log, (0..3).map(|i| entry(1, i, 90)).collect());
    append(&mut log, vec![entry(1, 3, 10)]);
    let whole = image(&dir.0);
    append(&mut log, vec![entry(1, 4, 10)]);
    let more = image(&dir.0);
    drop(log);
    let name = PathBuf::from("000001");
    let marked = (4096..whole[&name].len())
        .find(|i| whole[&name][*i] != more[&name][*i])
        .unwrap();
    let mut harmless = 0;
    // The first page holds 36 bytes.
    for at in (0..36).chain(4096..marked) {
        let mut bad = more.clone();
        let byte = &mut bad.get_mut(&name).unwrap()[at];
        *byte ^= 1 << (at % 8);
        let dir = restore(&bad);
        match LogStore::open_with(&dir.0, &small()) {
            Err(WalError::BitRot { segment, offset }) => {
                assert_eq!(segment, SegmentId(1));
                assert!(offset <= at as u64);
            }
            Err(err) => panic!("byte {at}: {err}"),
            // Padding; nothing is lost by it.
            Ok(mut log) => {
                assert_eq!(check_all(&mut log).len(), 5);
                harmless += 1;
            }
        }
    }
    println!("{marked} bytes, {harmless} of them padding");
    assert!(harmless < 300);
}

/// Where the payload of each entry is.
fn segments(log: &mut LogStore) -> Vec<u64> {
    let segment = |entry: &Entry| match &entry.payload {
        EntryPayload::Normal(command) => match &command.payload.at {
            At::Log { segment, .. } => segment.id().0,
            _ => 0,
        },
        _ => 0,
    };
    read(log).iter().map(segment).collect()
}

#[test]
fn what_no_mark_covers_is_written_anew() {
    let dir = Dir::new("anew");
    let mut log = open(&dir);
    append(&mut log, vec![entry(1, 0, 900)]);
    append(&mut log, vec![entry(1, 1, 900), entry(1, 2, 900)]);
    let killed = restore(&image(&dir.0));
    drop(log);
    let mut log = open(&killed);
    assert_eq!(segments(&mut log), [1, 2, 2]);
    let moved = image(&killed.0);
    append(&mut log, vec![entry(1, 3, 900)]);
    let marked = image(&killed.0);
    drop(log);

    // Stopped before the base of the fresh segment was there.
    let mut bad = moved.clone();
    bad.get_mut(Path::new("000002")).unwrap()[4096..4200].fill(0);
    assert_eq!(check_all(&mut open(&restore(&bad))).len(), 3);
    // Stopped with it: nothing but a mark makes it durable for certain.
    let again = restore(&moved);
    assert_eq!(segments(&mut open(&again)), [1, 3, 3]);
    assert_eq!(check_all(&mut open(&again)).len(), 3);
    // The old tail does not count any more, and the new one does.
    let mut bad = marked.clone();
    let old = bad.get_mut(Path::new("000001")).unwrap();
    let last = old.iter().rposition(|byte| *byte != 0).unwrap();
    old[last] ^= 1;
    assert_eq!(check_all(&mut open(&restore(&bad))).len(), 4);
    let mut bad = marked.clone();
    bad.get_mut(Path::new("000002")).unwrap()[5000] ^= 1;
    match LogStore::open_with(&restore(&bad).0, &small()) {
        Err(WalError::BitRot { segment, .. }) => assert_eq!(segment, SegmentId(2)),
        Err(err) => panic!("{err}"),
        Ok(_) => panic!("the damage was not seen"),
    }
}

#[test]
fn a_missing_segment_is_named() {
    let dir = Dir::new("missing");
    let mut log = open(&dir);
    for index in 0..20 {
        append(&mut log, vec![entry(1, index, 20_000)]);
    }
    drop(log);
    let whole = image(&dir.0);
    for name in ["000001", "000002", "000003"] {
        let mut holed = whole.clone();
        holed.remove(Path::new(name)).unwrap();
        match LogStore::open_with(&restore(&holed).0, &small()) {
            Err(WalError::BitRot { segment, .. }) => assert_eq!(segment.to_string(), name),
            Err(err) => panic!("{err}"),
            Ok(_) => panic!("the hole was not seen"),
        }
    }
}

/// Many lives of few segments, stopped at any moment: what an earlier life
/// has left never comes back, and what was purged stays purged.
#[test]
fn stale_records_never_validate() {
    let dir = Dir::new("stale");
    let mut log = open(&dir);
    let mut next = 0;
    for term in 1..60 {
        let from = next;
        for _ in 0..7 {
            append(&mut log, vec![entry(term, next, 3000)]);
            next += 1;
        }
        let unwritten = start_append(&mut log, vec![entry(term, next, 5000)]);
        let stopped = image(&dir.0);
        block(unwritten).unwrap();
        block(log.purge(log_id(term, from))).unwrap();
        next += 1;
        let copy = restore(&stopped);
        let mut other = open(&copy);
        let terms = check_all(&mut other);
        let last = last_index(&mut other).unwrap();
        assert!(last == next - 1 || last == next - 2, "{last} of {next}");
        for (index, found) in terms {
            assert_eq!(found, index / 8 + 1);
        }
    }
    let names = image(&dir.0);
    assert!(names.len() < 8, "{:?}", names.keys());
    let highest = names.keys().next_back().unwrap().to_str().unwrap();
    assert!(highest > "000020", "{highest}");
}

#[test]
fn a_reader_keeps_its_segment() {
    let dir = Dir::new("reader");
    let mut opts = small();
    opts.wal.idle = Duration::from_millis(1);
    let mut log = LogStore::open_with(&dir.0, &opts).unwrap();
    for index in 0..30 {
        append(&mut log, vec![entry(1, index, 20_000)]);
    }
    let held = read(&mut log).swap_remove(1);
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(dir.0.join(name)).map(|m| m.ino()).ok()
    };
    let (first, second) = (inode("000001"), inode("000005"));
    assert!(first.is_some() && second.is_some());
    block(log.purge(log_id(1, 28))).unwrap();
    let last = vec![entry(1, 30, 10)];
    append(&mut log, last);
    wait_until("segments are recycled", || inode("000005") != second);
    wait_until("segments are retired", || log.stats().segments <= 2);
    check(&held, 1);
    assert_eq!(inode("000001"), first);
    // The log is whole with the stray segment in its directory.
    let copy = restore(&image(&dir.0));
    let mut other = open(&copy);
    assert_eq!(check_all(&mut other).len(), 2);
    let state = block(other.get_log_state()).unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(1, 28)));
    drop(other);
    drop(held);
    wait_until("the last one is recycled", || inode("000001") != first);
    drop(log);
    let mut log = open(&dir);
    assert_eq!(log.recovered().first, Some(29));
    assert_eq!(log.recovered().last, Some(log_id(1, 30)));
    assert_eq!(log.first_index(), 29);
    // Purged beyond its end, as by a snapshot.
    block(log.purge(log_id(2, 99))).unwrap();
    assert_eq!(*log.flushed().borrow(), 99);
    append(&mut log, vec![entry(2, 100, 10)]);
    drop(log);
    assert_eq!(open(&dir).recovered().first, Some(100));
}

#[test]
fn after_a_failed_sync_nothing_works() {
    let dir = Dir::new("fail");
    let mut opts = small();
    opts.wal.fail_sync_after = Some(2);
    let mut log = LogStore::open_with(&dir.0, &opts).unwrap();
    append(&mut log, vec![entry(1, 0, 10)]);
    append(&mut log, vec![entry(1, 1, 10)]);
    let third = start_append(&mut log, vec![entry(1, 2, 10)]);
    let err = block(third).unwrap_err();
    assert_eq!(
        err.to_string(),
        "wal: segment 000001: fdatasync: injected failure"
    );
    let (done, _) = TypeConfig::oneshot();
    let later = log.append(vec![entry(1, 3, 10)], IOFlushed::signal(done));
    assert!(block(later).is_err());
    assert!(block(log.save_vote(&vote(9))).is_err());
    assert_eq!(*log.flushed().borrow(), 1);
    drop(log);
    assert!(check_all(&mut open(&dir)).len() >= 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = Dir::new("large");
    let mut log = open(&dir);
    let (done, _) = TypeConfig::oneshot();
    let large = entry(1, 0, log.entry_max());
    assert!(block(log.append(vec![large], IOFlushed::signal(done))).is_err());
}

/// More than one group and one pwritev(2) take.
#[test]
fn large_groups() {
    let dir = Dir::new("groups");
    let mut opts = small();
    opts.wal.segment_size = 32 << 20;
    let mut log = LogStore::open_with(&dir.0, &opts).unwrap();
    let many = (0..6000).map(|i| entry(1, i, 1500)).collect();
    let large = (6000..6030).map(|i| entry(1, i, 1 << 20)).collect();
    let many = start_append(&mut log, many);
    let large = start_append(&mut log, large);
    block(many).unwrap();
    block(large).unwrap();
    assert!(log.stats().flushes <= 6, "{:?}", log.stats());
    drop(log);
    assert_eq!(check_all(&mut open(&dir)).len(), 6030);
}

/// A disk for so few segments that a log fills it.
fn small_disk() -> Option<(Dir, PathBuf, Tmpfs)> {
    let dir = Dir::new("full");
    let Some(tmpfs) = Tmpfs::mount(dir.0.clone(), "512k") else {
        eprintln!("SKIPPED: cannot mount a tmpfs");
        return None;
    };
    let wal = dir.0.join("wal");
    Some((dir, wal, tmpfs))
}

/// A disk that is full: the log stands still, and goes on when there is room.
#[test]
fn a_full_disk() {
    let Some((dir, wal, _tmpfs)) = small_disk() else {
        return;
    };
    let mut opts = small();
    opts.wal.idle = Duration::from_millis(1);
    let mut log = LogStore::open_with(&wal, &opts).unwrap();
    let done: Vec<_> = (0..40)
        .map(|index| start_append(&mut log, vec![entry(1, index, 20_000)]))
        .collect();
    wait_until("the log stands still", || log.stats().standing);
    assert_eq!(log.stats().spare, 1);
    // What waits can be read, and can not count as flushed.
    assert_eq!(check_all(&mut log).len(), 40);
    let flushed = *log.flushed().borrow();
    assert!(flushed > 5 && flushed < 39);
    // It opens on the full disk, too, and has what was acknowledged.
    drop(log);
    for (index, done) in (0..).zip(done) {
        assert_eq!(block(done).is_ok(), index <= flushed, "entry {index}");
    }
    let mut log = LogStore::open_with(&wal, &opts).unwrap();
    assert_eq!(check_all(&mut log).len() as u64, flushed + 1);
    let done: Vec<_> = (flushed + 1..40)
        .map(|index| start_append(&mut log, vec![entry(1, index, 20_000)]))
        .collect();
    wait_until("the disk is still full", || log.stats().standing);
    // Room that others give back.
    let remount = std::process::Command::new("mount")
        .args(["-o", "remount,size=4096k"])
        .arg(&dir.0)
        .status();
    assert!(remount.unwrap().success());
    for done in done {
        block(done).unwrap();
    }
    assert_eq!(*log.flushed().borrow(), 39);
    assert!(!log.stats().no_room && !log.stats().standing);
    drop(log);
    let mut log = LogStore::open_with(&wal, &opts).unwrap();
    assert_eq!(check_all(&mut log).len(), 40);
}

/// A log that has filled its disk by itself: what frees it is a record of its
/// own, behind entries for which there is no room.
#[test]
fn a_log_that_fills_its_disk_can_be_purged() {
    let Some((_dir, wal, _tmpfs)) = small_disk() else {
        return;
    };
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    let done: Vec<_> = (0..40)
        .map(|index| start_append(&mut log, vec![entry(1, index, 20_000)]))
        .collect();
    wait_until("the log stands still", || log.stats().standing);
    // The raft engine waits for that: it says that the entries before are on
    // disk as well.
    let (voted, wait) = mpsc::channel();
    let voter = thread::spawn({
        let mut log = log.clone();
        move || voted.send(block(log.save_vote(&vote(2))))
    });
    let flushed = log.flushed();
    while *flushed.borrow() < 39 {
        let upto = *flushed.borrow();
        block(log.purge(log_id(1, upto))).unwrap();
        wait_until("the log goes on", || *flushed.borrow() > upto);
    }
    for done in done {
        block(done).unwrap();
    }
    wait.recv_timeout(LIMIT).expect("the vote waits").unwrap();
    voter.join().unwrap().unwrap();
    let first = log.first_index();
    drop(log);
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    let terms = check_all(&mut log);
    assert_eq!(terms.keys().next_back(), Some(&39));
    assert_eq!(terms.keys().next(), Some(&first));
    assert_eq!(log.recovered().vote, Some(vote(2)));
}

/// The log as it was, on a disk that is full with it.
fn put_back(image: &Image, dir: &Dir) {
    let wal = dir.0.join("wal");
    fs::remove_dir_all(&wal).unwrap();
    fs::create_dir(&wal).unwrap();
    for (name, bytes) in image {
        fs::write(wal.join(name), bytes).unwrap();
    }
    let mut others = fs::File::create(dir.0.join("others")).unwrap();
    while others.write_all(&[1; 4096]).is_ok() {}
}

/// Appends until there is no room; the last index on disk.
fn fill(log: &mut LogStore) -> u64 {
    for index in 0.. {
        drop(start_append(log, vec![entry(1, index, 500)]));
        wait_until("flushed", || {
            *log.flushed().borrow() >= index || log.stats().standing
        });
        if log.stats().standing {
            break;
        }
    }
    let flushed = *log.flushed().borrow();
    flushed
}

/// A stop after a purge was written, and before any file was used again.
#[test]
fn what_was_purged_before_a_stop_is_freed_after_it() {
    let Some((dir, wal, _tmpfs)) = small_disk() else {
        return;
    };
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    let flushed = fill(&mut log);
    let mut killed = image(&wal);
    let current = segments(&mut log)[flushed as usize];
    block(log.purge(log_id(1, flushed - 1))).unwrap();
    wait_until("the log goes on", || *log.flushed().borrow() > flushed);
    let current = PathBuf::from(SegmentId(current).to_string());
    let purged = fs::read(wal.join(&current)).unwrap();
    killed.insert(current, purged);
    drop(log);
    put_back(&killed, &dir);

    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    assert_eq!(check_all(&mut log).len(), 1);
    let done = start_append(&mut log, vec![entry(1, flushed + 1, 20_000)]);
    wait_until("the log goes on", || *log.flushed().borrow() > flushed);
    block(done).unwrap();
}

/// What is kept for purges is not used up by those that free nothing, nor by
/// votes.
#[test]
fn there_is_room_for_the_purge_that_helps() {
    let Some((_dir, wal, _tmpfs)) = small_disk() else {
        return;
    };
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    let flushed = fill(&mut log);
    drop(log);
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    // Nothing is before it that would have to be written first.
    let (voted, wait) = mpsc::channel();
    let voter = thread::spawn({
        let mut log = log.clone();
        move || {
            for term in 2..500 {
                voted.send(block(log.save_vote(&vote(term)))).unwrap();
            }
        }
    });
    wait.recv_timeout(LIMIT).expect("the vote waits").unwrap();
    let flushes = log.stats().flushes;
    wait_until("the votes wait", || {
        let one_more = wait.recv_timeout(Duration::from_millis(100));
        one_more.is_err() && log.stats().standing
    });
    assert!(log.stats().flushes > flushes);
    let first_of_second = segments(&mut log).iter().position(|id| *id > 1).unwrap();
    let flushes = log.stats().flushes;
    for upto in 0..first_of_second as u64 - 1 {
        log.release(upto).unwrap();
    }
    assert_eq!(log.stats().flushes, flushes);
    log.release(flushed).unwrap();
    voter.join().unwrap();
    let done = start_append(&mut log, vec![entry(1, flushed + 1, 20_000)]);
    block(done).unwrap();
}

/// A crash with a tail that no mark covers, when there is no room for another
/// segment: twice, for the first takes the one that was kept for it.
#[test]
fn a_tail_on_a_full_disk() {
    let Some((dir, wal, _tmpfs)) = small_disk() else {
        return;
    };
    let small_entry = |index| vec![entry(1, index, 500)];
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    // How many there is room for.
    let mut most = 0;
    while !log.stats().standing {
        drop(start_append(&mut log, small_entry(most + 1)));
        wait_until("flushed", || {
            *log.flushed().borrow() > most || log.stats().standing
        });
        most += 1;
    }
    drop(log);
    fs::remove_dir_all(&wal).unwrap();
    // In the last of the segments, and no mark of its own yet.
    let mut log = LogStore::open_with(&wal, &small()).unwrap();
    for index in 1..most - 3 {
        append(&mut log, small_entry(index));
    }
    for index in most - 3..most - 1 {
        let killed = image(&wal);
        drop(log);
        put_back(&killed, &dir);
        log = LogStore::open_with(&wal, &small()).unwrap();
        assert_eq!(check_all(&mut log).len() as u64, index - 1);
        wait_until("no segment is left", || {
            let stats = log.stats();
            stats.no_room && stats.spare == 0
        });
        append(&mut log, small_entry(index));
    }
}

const CHILD: &str = "DFSD_WAL_CHILD";
const FULL: &str = "DFSD_WAL_FULL";

/// What the killed process runs: appends for ever and tells what is on disk.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    if std::env::var_os(FULL).is_some() {
        return child_on_a_full_disk(Path::new(&dir));
    }
    let mut opts = small();
    opts.wal.idle = Duration::from_millis(3);
    let mut log = LogStore::open_with(Path::new(&dir), &opts).unwrap();
    let mut out = io::stdout();
    let mut next = last_index(&mut log).map_or(0, |last| last + 1);
    loop {
        let mut done = Vec::new();
        for _ in 0..next % 7 + 1 {
            let len = (next * 997 % 6000) as usize;
            done.push((next, start_append(&mut log, vec![entry(1, next, len)])));
            next += 1;
        }
        for (index, done) in done {
            block(done).unwrap();
            writeln!(out, "acked {index}").unwrap();
        }
        if next > log.first_index() + 90 {
            let upto = log_id(1, next - 40);
            block(log.purge(upto)).unwrap();
            writeln!(out, "purged {}", upto.index).unwrap();
        }
        out.flush().unwrap();
    }
}

/// Purges only when the log stands still.
fn child_on_a_full_disk(dir: &Path) {
    let mut opts = small();
    opts.wal.idle = Duration::from_millis(3);
    let mut log = LogStore::open_with(dir, &opts).unwrap();
    let mut out = io::stdout();
    let flushed = log.flushed();
    let mut next = last_index(&mut log).map_or(0, |last| last + 1);
    loop {
        for _ in 0..next % 7 + 1 {
            let len = (next * 997 % 6000) as usize;
            drop(start_append(&mut log, vec![entry(1, next, len)]));
            next += 1;
        }
        while *flushed.borrow() + 1 < next {
            let upto = flushed.borrow().saturating_sub(1 + next % 5);
            if log.stats().standing && upto >= log.first_index() {
                writeln!(out, "purged {upto}").unwrap();
                block(log.purge(log_id(1, upto))).unwrap();
            }
            thread::yield_now();
        }
        writeln!(out, "acked {}", next - 1).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost_to_kill() {
    let dir = Dir::new("kill");
    kill_again_and_again(&dir.0.join("wal"), false);
}

#[test]
fn nothing_acknowledged_is_lost_to_kill_on_a_full_disk() {
    if let Some((_dir, wal, _tmpfs)) = small_disk() {
        kill_again_and_again(&wal, true);
    }
}

fn kill_again_and_again(wal: &Path, full: bool) {
    let (mut acked, mut purged) = (None, None);
    for round in 0..15u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(CHILD, wal)
            .envs(full.then_some((FULL, "")))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let number = |word: &str| line.strip_prefix(word).and_then(|n| n.parse::<u64>().ok());
            acked = number("acked ").or(acked);
            purged = number("purged ").or(purged);
            lines += 1;
            if lines == 20 + round * 37 {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success());
        let mut log = LogStore::open_with(wal, &small()).unwrap();
        let terms = check_all(&mut log);
        let last = last_index(&mut log);
        assert!(last >= acked, "round {round}: {last:?} < {acked:?}");
        let first = terms.keys().next().copied();
        assert!(first <= purged.map_or(Some(0), |p| Some(p + 90)));
        assert_eq!(terms.len() as u64, last.unwrap() + 1 - first.unwrap());
        acked = last;
    }
    assert!(acked > Some(1000));
}
