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

//! The flush thread: takes all that is queued, writes it as one group, syncs
//! once, tells everyone who waits.  Runs in raftd.  It alone writes to the
//! log once that is open, and never tries anything again that has failed.

#![forbid(unsafe_code)]

use super::record::{pad, put, put_head, record_len, Base, Mark, Pos, State, MARK, SEGMENT_HEADER};
use super::recovery::Opened;
use super::segment::{Pool, Segment, SegmentId, KEPT};
use super::{add, lock, Done, Failure, Index, Kind, Options, Record, Shared, Written, GROUP_MAX};
use bytes::Bytes;
use common::sys::random::random_u64;
use common::{log_warn, log_warnx};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Kept free at the end of a segment, for purges and votes while there is no
/// other.
const RESERVE: u64 = 16 << 10;
/// Of that, not for votes.
const PURGES: u64 = 6 << 10;
/// Of that, for marks, and for the larger base of a segment that takes over a
/// tail.
const MARKS: u64 = 1024;
/// Groups are padded to whole pages, so that the kernel need not read one.
const PAGE: u64 = 4096;
/// Payloads below this size are copied beside their headers.
const COPY_MAX: usize = 1024;
/// Buffer that is kept between groups.
const COPIED_MAX: usize = 1 << 20;
/// Most pieces that one pwritev(2) takes.
const IOV_MAX: usize = 1024;

/// A segment of the chain.
pub(super) struct Live {
    pub segment: Arc<Segment>,
    /// Highest index of an entry in it, unless truncated.
    pub hi: Option<u64>,
}

impl Live {
    pub fn truncate(&mut self, first: u64) {
        self.hi = match (self.hi, first.checked_sub(1)) {
            (Some(hi), Some(last)) => Some(hi.min(last)),
            _ => None,
        };
    }
}

enum Next {
    Work,
    Idle,
    Closed,
}

/// The state of the flush thread.
pub(super) struct Flusher {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    index: Arc<dyn Index>,
    idle: Duration,
    syncs_left: Option<u64>,

    ring: VecDeque<Live>,
    segment: Arc<Segment>,
    /// Where the next record goes, and the chain value there.
    offset: u64,
    chain: u32,
    state: State,
    durable: Pos,
    /// Segments before this one do not count once the next mark is on disk.
    oldest: SegmentId,
    nonce: u64,
    /// Since when no mark covers the last group, or has the last commit index.
    unmarked: Option<Instant>,

    pending: VecDeque<Record>,
    committed: Option<Vec<u8>>,

    // The group in the making.
    start: u64,
    copied: Vec<u8>,
    /// Payloads not copied, each with the length of `copied` before it.
    payloads: Vec<(usize, Bytes)>,
    written: Vec<Written>,
    dones: Vec<Done>,
    taken: usize,
}

impl Flusher {
    pub fn new(
        shared: Arc<Shared>,
        pool: Arc<Pool>,
        index: Arc<dyn Index>,
        opts: &Options,
        opened: Opened,
    ) -> io::Result<Flusher> {
        let last = opened.ring.back().map(|live| live.segment.clone());
        let oldest = opened.ring.front().map(|live| live.segment.id());
        let count = opened.ring.len() as u64;
        shared.counters.segments.store(count, Ordering::Relaxed);
        let mut flusher = Flusher {
            shared,
            pool,
            index,
            idle: opts.idle,
            syncs_left: opts.fail_sync_after,
            ring: opened.ring,
            segment: last.ok_or_else(|| io::Error::other("no segment"))?,
            offset: opened.offset,
            chain: opened.chain,
            state: opened.state,
            durable: opened.durable,
            oldest: oldest.unwrap_or_default(),
            nonce: random_u64()?,
            unmarked: opened.unmarked.then(Instant::now),
            pending: VecDeque::new(),
            committed: opened.committed,
            start: opened.offset,
            copied: Vec::new(),
            payloads: Vec::new(),
            written: Vec::new(),
            dones: Vec::new(),
            taken: 0,
        };
        // A stop may have come between a purge and what it frees.
        if flusher.unmarked.is_none() {
            flusher.find_oldest();
        }
        Ok(flusher)
    }

    pub fn run(mut self) {
        let mut done = self.mark_tail();
        loop {
            if let Err(err) = done {
                return self.fail(&err);
            }
            done = match self.absorb() {
                Next::Work => self.group(),
                Next::Idle => self.mark(),
                Next::Closed if self.unmarked.is_none() => return,
                Next::Closed => self.mark(),
            };
        }
    }

    /// Takes all that is queued; sleeps while there is nothing to do.
    fn absorb(&mut self) -> Next {
        let shared = self.shared.clone();
        let mut queue = lock(&shared.queue);
        loop {
            if let Some(committed) = queue.committed.take() {
                self.committed = Some(committed);
                self.unmarked.get_or_insert_with(Instant::now);
            }
            self.pending.append(&mut queue.records);
            if !self.pending.is_empty() {
                return Next::Work;
            }
            if queue.closed {
                return Next::Closed;
            }
            let rest = self
                .unmarked
                .map(|since| self.idle.saturating_sub(since.elapsed()));
            if rest == Some(Duration::ZERO) {
                return Next::Idle;
            }
            queue.sleeping = true;
            queue.idle = rest.is_none();
            queue = match rest {
                None => shared
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(rest) => {
                    shared
                        .wake
                        .wait_timeout(queue, rest)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            queue.sleeping = false;
            queue.idle = false;
        }
    }

    /// Writes and syncs as much of what is pending as one group takes.
    fn group(&mut self) -> io::Result<()> {
        let size = self.pending.front().map_or(0, Record::size);
        if !self.fits(MARK + size) {
            self.roll()?;
        }
        self.begin();
        while let Some(record) = self.pending.pop_front() {
            let size = record.size();
            let full = self.taken > 0 && self.taken + size > GROUP_MAX;
            if full || !self.fits(size) {
                self.pending.push_front(record);
                break;
            }
            self.taken += size;
            self.append(record);
        }
        self.append_committed();
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.write()?;
        add(&self.shared.counters.groups, 1);
        self.unmarked = Some(Instant::now());
        self.mark_tail()?;
        self.report();
        Ok(())
    }

    /// A stop must not leave a tail when there is no segment to write it anew.
    fn mark_tail(&mut self) -> io::Result<()> {
        match self.unmarked.is_some() && self.pool.ready() == 0 && self.has_marks() {
            true => self.mark(),
            false => Ok(()),
        }
    }

    /// A mark of its own, and the commit index if there is a newer one.
    fn mark(&mut self) -> io::Result<()> {
        // Only a segment that took over a tail can be so full.
        if !self.has_marks() {
            self.roll()?;
        }
        self.begin();
        self.append_committed();
        self.write()?;
        self.unmarked = None;
        Ok(())
    }

    fn fits(&self, size: usize) -> bool {
        self.offset + size as u64 <= self.segment.size() - RESERVE
    }

    fn has_marks(&self) -> bool {
        self.offset + MARKS <= self.segment.size()
    }

    /// Waits for the next segment; purges do not.
    fn stand(&mut self) -> io::Result<Arc<Segment>> {
        self.settle()?;
        let shared = self.shared.clone();
        let counters = &shared.counters;
        let mut seen = 0;
        loop {
            self.overtake(seen)?;
            seen = self.pending.len();
            let no_room = counters.no_room.load(Ordering::Relaxed);
            let mut queue = lock(&shared.queue);
            // At the end a mark follows, and the next start can make another.
            let left = if queue.closed && !no_room { 0 } else { KEPT };
            if let Some(segment) = self.pool.take(left) {
                counters.standing.store(false, Ordering::Relaxed);
                return Ok(segment);
            }
            if queue.closed {
                return Err(io::Error::other("no spare segment"));
            }
            if no_room && !counters.standing.swap(true, Ordering::Relaxed) {
                drop(queue);
                log_warnx!("wal: no segment left; the log stands still until there is room");
                continue;
            }
            if queue.records.is_empty() {
                queue.sleeping = true;
                queue = shared
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                queue.sleeping = false;
            }
            self.pending.append(&mut queue.records);
        }
    }

    /// Writes what can be written ahead of what else is pending; looks for it
    /// from there on.
    fn overtake(&mut self, from: usize) -> io::Result<()> {
        let (mut ahead, mut size, mut at) = (Vec::new(), MARK, from);
        while let Some(record) = self.pending.get(at) {
            if !self.can_overtake(record, at) {
                at += 1;
                continue;
            }
            let is_vote = record.kind == Kind::Vote;
            let kept = MARKS + if is_vote { PURGES } else { 0 };
            let end = self.offset + (size + record.size()) as u64 + kept;
            match end > self.segment.size() {
                true if is_vote => at += 1,
                // A later purge must not come before it.
                true => break,
                false => {
                    size += record.size();
                    ahead.extend(self.pending.remove(at));
                }
            }
        }
        if ahead.is_empty() {
            return Ok(());
        }
        self.begin();
        for record in ahead {
            self.taken += record.size();
            self.append(record);
        }
        self.end()?;
        self.settle()
    }

    /// Leaves no tail, and frees what can be: a purge does that only with a
    /// mark behind it.
    fn settle(&mut self) -> io::Result<()> {
        let dead = |oldest, live: Option<&Live>| live.is_some_and(|l| l.segment.id() < oldest);
        while self.has_marks() && (self.unmarked.is_some() || dead(self.oldest, self.ring.front()))
        {
            self.mark()?;
        }
        Ok(())
    }

    /// A purge says nothing of the entries that are pending, so that it is as
    /// true before them.  A vote must wait for what is before it: that it is on
    /// disk tells openraft that all which it has appended is.
    fn can_overtake(&self, record: &Record, at: usize) -> bool {
        let entries = |other: &&Record| matches!(other.kind, Kind::Entry | Kind::Truncate);
        match record.kind {
            Kind::Vote => at == 0,
            Kind::Purge => {
                let mut entries = self.pending.iter().filter(entries);
                entries.all(|other| other.index > record.index)
            }
            _ => false,
        }
    }

    /// Goes on in the next segment.  The old one is synced already.
    fn roll(&mut self) -> io::Result<()> {
        let next = match self.pool.take(KEPT) {
            Some(segment) => segment,
            None => self.stand()?,
        };
        let prev = Pos {
            segment: self.segment.id(),
            offset: self.offset,
        };
        self.segment = next;
        self.ring.push_back(Live {
            segment: self.segment.clone(),
            hi: None,
        });
        let base = Base {
            prev,
            prev_chain: self.chain,
            state: self.state.clone(),
        };
        self.offset = SEGMENT_HEADER;
        self.start = self.offset;
        self.put(Kind::Base, 0, &base.encode());
        let count = self.ring.len() as u64;
        let segments = &self.shared.counters.segments;
        segments.store(count, Ordering::Relaxed);
        Ok(())
    }

    fn begin(&mut self) {
        if self.copied.is_empty() {
            self.start = self.offset;
        }
        self.nonce = self.nonce.wrapping_add(1);
        let mark = Mark {
            durable: self.durable,
            offset: self.offset,
            nonce: self.nonce,
        };
        self.put(Kind::Mark, 0, &mark.encode());
    }

    fn put(&mut self, kind: Kind, index: u64, body: &[u8]) {
        let salt = self.segment.salt();
        put(&mut self.copied, salt, &mut self.chain, kind, index, body);
        self.offset += record_len(body.len()) as u64;
    }

    fn append(&mut self, record: Record) {
        let payload = record.payload;
        if !payload.is_empty() {
            self.append_payload(record.index, payload, record.payload_crc);
        }
        if record.kind == Kind::Entry {
            self.written.push(Written {
                index: record.index,
                tag: record.tag,
                segment: self.segment.clone(),
                offset: self.offset,
            });
            if let Some(live) = self.ring.back_mut() {
                live.hi = Some(record.index);
            }
        }
        if record.kind == Kind::Truncate {
            self.ring
                .iter_mut()
                .for_each(|live| live.truncate(record.index));
        }
        self.put(record.kind, record.index, &record.body);
        self.state.note(record.kind, record.index, &record.body);
        self.dones.extend(record.done);
    }

    /// The bytes are written from where they are; their checksum is known.
    fn append_payload(&mut self, index: u64, payload: Bytes, crc: u32) {
        let len = payload.len();
        let salt = self.segment.salt();
        let (out, chain) = (&mut self.copied, &mut self.chain);
        put_head(out, salt, chain, Kind::Payload, index, len, crc);
        if len < COPY_MAX {
            out.extend_from_slice(&payload);
        } else {
            self.payloads.push((out.len(), payload));
        }
        pad(&mut self.copied, len);
        self.offset += record_len(len) as u64;
        add(&self.shared.counters.payload, len as u64);
    }

    /// It may speak of entries that are pending.
    fn append_committed(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        if let Some(body) = self.committed.take() {
            self.put(Kind::Committed, 0, &body);
            self.state.note(Kind::Committed, 0, &body);
        }
    }

    /// Writes what has been put together, and syncs it.
    fn write(&mut self) -> io::Result<()> {
        let end = self.offset.next_multiple_of(PAGE);
        let padding = (end - self.offset) as usize;
        self.copied.resize(self.copied.len() + padding, 0);
        let mut pieces = Vec::with_capacity(2 * self.payloads.len() + 1);
        let (mut rest, mut at) = (self.copied.as_slice(), 0);
        for (before, payload) in &self.payloads {
            let (head, tail) = rest.split_at(before - at);
            pieces.push(IoSlice::new(head));
            pieces.push(IoSlice::new(payload));
            (rest, at) = (tail, *before);
        }
        pieces.push(IoSlice::new(rest));
        write_all(self.segment.file(), &mut pieces, self.start)
            .map_err(|err| self.told("write", err))?;
        self.sync().map_err(|err| self.told("fdatasync", err))?;
        add(&self.shared.counters.written, end - self.start);
        self.copied.clear();
        self.copied.shrink_to(COPIED_MAX);
        self.payloads.clear();
        self.start = self.offset;
        self.durable = Pos {
            segment: self.segment.id(),
            offset: self.offset,
        };
        self.retire();
        Ok(())
    }

    fn told(&self, what: &str, err: io::Error) -> io::Error {
        io::Error::new(err.kind(), format!("{}: {what}: {err}", self.segment))
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.syncs_left {
            match left.checked_sub(1) {
                Some(n) => *left = n,
                None => return Err(io::Error::other("injected failure")),
            }
        }
        add(&self.shared.counters.flushes, 1);
        self.segment.file().sync_data()
    }

    /// Retires the segments that did not count when the last group was
    /// written, as the mark of this one is on disk; finds the next ones.
    fn retire(&mut self) {
        while let Some(live) = self.ring.pop_front() {
            if live.segment.id() >= self.oldest {
                self.ring.push_front(live);
                break;
            }
            live.segment.retire();
        }
        self.find_oldest();
        let count = self.ring.len() as u64;
        let segments = &self.shared.counters.segments;
        segments.store(count, Ordering::Relaxed);
    }

    fn find_oldest(&mut self) {
        let first = self.state.live.map(|(first, _)| first);
        let counts = |live: &Live| match (live.hi, first) {
            (Some(hi), Some(first)) => hi >= first,
            _ => false,
        };
        let oldest = self.ring.iter().find(|live| counts(live));
        self.oldest = oldest.map_or(self.segment.id(), |live| live.segment.id());
    }

    /// Tells everyone who waits for the group.
    fn report(&mut self) {
        self.index.flushed(&self.written);
        self.written.clear();
        for done in self.dones.drain(..) {
            done(Ok(()));
        }
        let taken = std::mem::take(&mut self.taken);
        let queued = &self.shared.counters.queued;
        queued.fetch_sub(taken, Ordering::Relaxed);
    }

    /// Nothing is known of what the disk has; all that wait are told, and
    /// all that come.
    fn fail(mut self, err: &io::Error) {
        log_warn!(err, "wal");
        let failure = Failure {
            kind: err.kind(),
            text: format!("wal: {err}"),
        };
        let mut queue = lock(&self.shared.queue);
        queue.failed = Some(failure.clone());
        self.pending.append(&mut queue.records);
        drop(queue);
        let pending = self.pending.drain(..).filter_map(|record| record.done);
        for done in self.dones.drain(..).chain(pending) {
            done(Err(failure.error()));
        }
    }
}

fn write_all(file: &File, mut pieces: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    // Empty pieces at the front would look like an end.
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        let some = pieces.get(..IOV_MAX).unwrap_or(pieces);
        match nix::sys::uio::pwritev(file, some, at as libc::off_t) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut pieces, n);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
