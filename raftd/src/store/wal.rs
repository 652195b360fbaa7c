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

//! raftd's write-ahead log: the redo journal of everything.  Runs in raftd;
//! `push` only queues, one thread writes and syncs whatever is queued as one
//! group, another one makes spare segments ready.  Never maps a file, never
//! acknowledges before the sync, and never retries one.
//!
//! The log is a chain of segments, files of one size named by their id
//! (000001, 000002, ...), written with zeros beforehand and recycled, so that
//! a sync finds no metadata to write and costs one flush of the device.
//! Integers are little-endian.
//!
//! ```text
//! segment:  offset  size
//!                0     8  "dfsdwal1"
//!                8     8  id
//!               16     8  salt, new with each life of the file
//!               24     8  size of the file
//!               32     4  crc32c of the above
//!             4096        records: a base, then groups
//!
//! record:        0     4  "dfWR"
//!                4     1  kind
//!                5     3  0
//!                8     8  salt of the segment
//!               16     8  log index, by kind
//!               24     4  length of the body
//!               28     4  crc32c of the body
//!               32     4  chain: crc32c of the 32 bytes above, going on from
//!                         the chain of the previous record
//!               36     4  0
//!               40        body, then zeros to a multiple of 8
//!
//! kind              index            body
//! 1 base            0                where the log before it ends (segment
//!                                    id, offset, chain); first and last live
//!                                    index; index of the last purge; the last
//!                                    vote, committed and purge bodies, each
//!                                    behind a byte of length
//! 2 mark            0                position known durable (segment id,
//!                                    offset), own offset, nonce
//! 3 payload         of its entry     the bytes; right before the entry
//! 4 entry           of the entry     opaque
//! 5 vote            0                opaque
//! 6 committed       0                opaque
//! 7 truncate        first to go      empty
//! 8 purge           last to go       opaque
//! ```
//!
//! A group is a mark and the records behind it, within one segment, and costs
//! one fdatasync.  When a segment has no room for the next record, the log
//! goes on in a spare one, whose base says where the old one ends; that one
//! is wholly durable by then.  The mark of a group says how far the log was
//! durable when the group was written; when no group follows within 100 ms,
//! a mark of its own does.  Recovery is told in wal/recovery.rs.
//!
//! A segment at the old end of the chain is retired when none of its entries
//! count any more (the base of the next one has all else of it), and when a
//! mark covers the record that made it so, since recovery takes only what
//! marks cover for granted.  Its file is recycled when the last reader has
//! dropped it: a `Segment` goes back to the pool in its Drop.
//!
//! On a full disk the log stands still at the end of a segment.  A purge frees
//! segments only once it is written, so the end of each segment is kept for
//! purges, and they are written ahead of the entries that wait; and for votes
//! that nothing is before, or there would be no leader to help others on.  A
//! crash at such a time may leave a tail, so one spare is kept for recovery.
//! Where recovery has taken it, a mark follows each group before anybody is
//! answered; a crash right before that mark leaves a log that does not open
//! until there is room for a segment.

#![forbid(unsafe_code)]

mod flush;
mod record;
mod recovery;
mod segment;

pub use record::{Kind, ENTRY_MAX};
pub use segment::{Segment, SegmentId};

use bytes::Bytes;
use flush::Flusher;
use record::record_len;
use segment::Pool;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Most bytes in one group, but for its last record.
const GROUP_MAX: usize = 16 << 20;

#[derive(Clone, Debug)]
pub struct Options {
    /// A multiple of 4096; also bounds an entry, to half of it.
    pub segment_size: u64,
    /// How long after the last sync a mark of its own follows.
    pub idle: Duration,
    /// Syncs after this number fail: for tests.
    pub fail_sync_after: Option<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_size: 64 << 20,
            idle: Duration::from_millis(100),
            fail_sync_after: None,
        }
    }
}

#[derive(Debug)]
pub enum WalError {
    Io(io::Error),
    /// What was durable once is damaged there.
    BitRot {
        segment: SegmentId,
        offset: u64,
    },
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalError::Io(err) => write!(f, "{err}"),
            WalError::BitRot { segment, offset } => write!(
                f,
                "segment {segment}: invalid record at offset {offset}, though it was durable"
            ),
        }
    }
}

impl std::error::Error for WalError {}

impl From<WalError> for io::Error {
    fn from(err: WalError) -> io::Error {
        match err {
            WalError::Io(err) => err,
            rot => io::Error::new(io::ErrorKind::InvalidData, rot),
        }
    }
}

impl From<io::Error> for WalError {
    fn from(err: io::Error) -> WalError {
        WalError::Io(err)
    }
}

/// Called once the record, and all before it, are on disk or never will be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A record to write.
pub struct Record {
    pub kind: Kind,
    pub index: u64,
    /// Comes back with `Written`.
    pub tag: u64,
    pub body: Vec<u8>,
    /// The bytes to stand before the record, and their crc32c.
    pub payload: Bytes,
    pub payload_crc: u32,
    pub done: Option<Done>,
}

impl Record {
    pub fn new(kind: Kind, index: u64, body: Vec<u8>) -> Record {
        Record {
            kind,
            index,
            tag: 0,
            body,
            payload: Bytes::new(),
            payload_crc: 0,
            done: None,
        }
    }

    /// Room that it takes in the log.
    fn size(&self) -> usize {
        let payload = match self.payload.len() {
            0 => 0,
            len => record_len(len),
        };
        payload + record_len(self.body.len())
    }
}

/// An entry that has reached the disk.
pub struct Written {
    pub index: u64,
    pub tag: u64,
    pub segment: Arc<Segment>,
    /// Of the entry's record.
    pub offset: u64,
}

/// A record found at start; a base passes on vote, committed and purge.
pub struct Replayed<'a> {
    pub kind: Kind,
    pub index: u64,
    pub body: &'a [u8],
    pub segment: &'a Arc<Segment>,
    pub offset: u64,
    /// Length and crc32c of the payload right before it.
    pub payload: Option<(u32, u32)>,
}

/// Where a payload of that length stands, by its entry's offset.
pub fn payload_offset(entry: u64, len: u32) -> u64 {
    entry.saturating_sub(record::align(len as usize) as u64)
}

/// Whoever keeps the entries' places; told of each record in log order.
pub trait Index: Send + Sync + 'static {
    /// False if the body can not be decoded.
    fn recovered(&self, record: &Replayed<'_>) -> bool;
    /// Entries of a group, after its sync and before any `Done` of it.
    fn flushed(&self, entries: &[Written]);
}

/// Counts since start, and what there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Calls of fdatasync(2).
    pub flushes: u64,
    /// Groups of records; the other flushes were marks of their own.
    pub groups: u64,
    /// Bytes written to segments, padding included.
    pub written: u64,
    /// Those of them that are payload.
    pub payload: u64,
    pub segments: u64,
    pub spare: u64,
    /// The disk has no room for a spare segment.
    pub no_room: bool,
    /// For that, the log stands still.
    pub standing: bool,
}

#[derive(Default)]
struct Counters {
    flushes: AtomicU64,
    groups: AtomicU64,
    written: AtomicU64,
    payload: AtomicU64,
    segments: AtomicU64,
    no_room: AtomicBool,
    standing: AtomicBool,
    queued: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// The log, open.  Dropping it writes what is queued, if the disk has room for
/// it, and a last mark.
pub struct Wal {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    flush: Option<JoinHandle<()>>,
    spare: Option<JoinHandle<()>>,
    entry_max: usize,
    segment_size: u64,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    counters: Counters,
}

impl Shared {
    /// Lets the flush thread look whether there is a segment.
    fn wake_up(&self) {
        let sleeping = std::mem::take(&mut lock(&self.queue).sleeping);
        if sleeping {
            self.wake.notify_one();
        }
    }
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Record>,
    /// Written with the next group, or with a mark.
    committed: Option<Vec<u8>>,
    sleeping: bool,
    /// Sleeping, with no mark to come.
    idle: bool,
    closed: bool,
    failed: Option<Failure>,
}

/// Why nothing is written any more.
#[derive(Clone)]
struct Failure {
    kind: io::ErrorKind,
    text: String,
}

impl Failure {
    fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

impl Wal {
    pub fn open(dir: &Path, opts: &Options, index: Arc<dyn Index>) -> Result<Wal, WalError> {
        let pool = Pool::new(dir, opts.segment_size)?;
        let opened = recovery::recover(&pool, &*index)?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            wake: Condvar::new(),
            counters: Counters::default(),
        });
        let mut wal = Wal {
            shared: shared.clone(),
            pool: pool.clone(),
            flush: None,
            spare: None,
            entry_max: ENTRY_MAX.min(opts.segment_size as usize / 2),
            segment_size: opts.segment_size,
        };
        let flusher = Flusher::new(shared.clone(), pool.clone(), index, opts, opened)?;
        wal.flush = Some(
            thread::Builder::new()
                .name("wal flush".into())
                .spawn(move || flusher.run())?,
        );
        wal.spare = Some(
            thread::Builder::new()
                .name("wal spare".into())
                .spawn(move || pool.run(&shared))?,
        );
        Ok(wal)
    }

    /// Longest entry with its payload.
    pub fn entry_max(&self) -> usize {
        self.entry_max
    }

    /// Queues records; they reach the disk in this order, but for purges on a
    /// full disk.
    pub fn push(&self, records: Vec<Record>) -> io::Result<()> {
        let mut size = 0;
        for record in &records {
            if record.size() > self.entry_max {
                let text = format!("wal: entry {} is too large", record.index);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            size += record.size();
        }
        let mut queue = lock(&self.shared.queue);
        if let Some(failure) = &queue.failed {
            return Err(failure.error());
        }
        self.shared
            .counters
            .queued
            .fetch_add(size, Ordering::Relaxed);
        queue.records.extend(records);
        let sleeping = std::mem::take(&mut queue.sleeping);
        drop(queue);
        if sleeping {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Leaves a commit index to go with the next group; with a mark if none
    /// comes, so that a node which stands still knows after a restart what it
    /// knew before.
    pub fn set_committed(&self, body: Vec<u8>) {
        let mut queue = lock(&self.shared.queue);
        queue.committed = Some(body);
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        if idle {
            self.shared.wake.notify_one();
        }
    }

    /// What is queued or being written.
    pub fn queued_bytes(&self) -> usize {
        self.shared.counters.queued.load(Ordering::Relaxed)
    }

    /// Room on disk that the log takes, spares not counted.
    pub fn bytes(&self) -> u64 {
        self.stats().segments * self.segment_size
    }

    pub fn stats(&self) -> WalStats {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        WalStats {
            flushes: get(&counters.flushes),
            groups: get(&counters.groups),
            written: get(&counters.written),
            payload: get(&counters.payload),
            segments: get(&counters.segments),
            spare: self.pool.ready() as u64,
            no_room: counters.no_room.load(Ordering::Relaxed),
            standing: counters.standing.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.wake.notify_one();
        self.pool.close();
        for thread in [self.flush.take(), self.spare.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}
