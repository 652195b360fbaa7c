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

//! openraft's log storage on the write-ahead log.  Runs in raftd.  Knows
//! where each entry is and keeps the most recent ones in memory; an entry
//! that is in memory only is never dropped, and a payload is never held
//! twice.  Nothing here waits for the disk but `save_vote` and reading what
//! the memory does not hold.
//!
//! ```text
//!  purged | first ....................................... last
//!         |  slots: leader, segment, offset, lengths
//!         |              recent: decoded, payload in memory .........
//!         |                        not yet written: no segment .....
//! ```

#![forbid(unsafe_code)]

use super::wal::{self, payload_offset, Index, Kind, Replayed, Segment, Wal, WalStats, Written};
use super::wal::{Record, WalError};
use crate::payload::{At, Payload};
use crate::raft::{Entry, EntryPayload, LogId, TypeConfig, Vote};
use bytes::Bytes;
use futures_util::{stream, Stream};
use openraft::alias::LeaderIdOf;
use openraft::errors::LeaderChanged;
use openraft::storage::{IOFlushed, LeaderBoundedStreamError, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;
use tokio::sync::{oneshot, watch};

/// What one batch of entries may hold, of payloads and the rest.
const BATCH: usize = 1 << 20;
/// What an entry takes in memory beside its body and payload.
const ENTRY_COST: usize = 256;

#[derive(Clone, Debug)]
pub struct Options {
    pub wal: wal::Options,
    /// Recent entries are kept decoded up to this many bytes.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            wal: wal::Options::default(),
            cache_bytes: 8 << 20,
        }
    }
}

/// What the log held at start.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    pub first: Option<u64>,
    /// Up to here the cluster must have committed before reads are right.
    pub last: Option<LogId>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
}

/// The log of this node; its clones are the same log.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    wal: Arc<Wal>,
    recovered: Arc<Recovered>,
}

#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

/// Where an entry is.
struct Slot {
    /// Position in `leaders`.
    leader: u32,
    /// Length of the body.
    len: u32,
    payload: u32,
    /// Of the entry's record; segments are shorter than 4 GiB.
    offset: u32,
    /// None until it is written.
    segment: Option<Arc<Segment>>,
}

impl Slot {
    fn cost(&self) -> usize {
        self.len as usize + self.payload as usize + ENTRY_COST
    }
}

struct Recent {
    entry: Entry,
    /// Of the append that brought it: an index can come again.
    tag: u64,
}

/// An entry to read from disk.
struct Place {
    index: u64,
    segment: Arc<Segment>,
    offset: u32,
    len: u32,
}

#[derive(Default)]
struct Table {
    first: u64,
    slots: VecDeque<Slot>,
    leaders: Vec<LeaderIdOf<TypeConfig>>,
    /// The entries of the last slots.
    recent: VecDeque<Recent>,
    recent_cost: usize,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Highest index on disk.
    flushed: Option<u64>,
    tag: u64,
}

struct Shared {
    table: Mutex<Table>,
    flushed: watch::Sender<u64>,
    cache_bytes: usize,
}

impl LogStore {
    /// Opens the log in that directory, and makes it if there is none.
    pub fn open(dir: &Path) -> io::Result<LogStore> {
        Ok(LogStore::open_with(dir, &Options::default())?)
    }

    pub fn open_with(dir: &Path, opts: &Options) -> Result<LogStore, WalError> {
        let shared = Arc::new(Shared {
            table: Mutex::default(),
            flushed: watch::Sender::new(0),
            cache_bytes: opts.cache_bytes,
        });
        let wal = Wal::open(dir, &opts.wal, shared.clone())?;
        let recovered = shared.lock().recovered();
        shared.publish(&shared.lock());
        Ok(LogStore {
            shared,
            wal: Arc::new(wal),
            recovered: Arc::new(recovered),
        })
    }

    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The highest index that is on this node's disk; 0 before the first.
    pub fn flushed(&self) -> watch::Receiver<u64> {
        self.shared.flushed.subscribe()
    }

    /// What has been appended and is not on disk.
    pub fn queued_bytes(&self) -> usize {
        self.wal.queued_bytes()
    }

    /// Longest body of an entry together with its payload.
    pub fn entry_max(&self) -> usize {
        self.wal.entry_max()
    }

    /// Room on disk that the log takes.
    pub fn bytes(&self) -> u64 {
        self.wal.bytes()
    }

    pub fn stats(&self) -> WalStats {
        self.wal.stats()
    }

    /// Frees the log up to there without openraft, which comes to know later
    /// that it need not keep it; nothing, if that is less than a segment, for
    /// there is not room for many records that say so.
    pub fn release(&self, upto: u64) -> io::Result<()> {
        let id = self.shared.lock().worth_freeing(upto);
        match id {
            Some(id) => self.shared.purge(&self.wal, id),
            None => Ok(()),
        }
    }

    /// The oldest index that is there, or the next one to come.
    pub fn first_index(&self) -> u64 {
        self.shared.lock().first_index()
    }
}

impl Table {
    fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn first_index(&self) -> u64 {
        match (&self.purged, self.slots.is_empty()) {
            (Some(purged), true) => purged.index + 1,
            _ => self.first,
        }
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        let at = index.checked_sub(self.first)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    fn log_id(&self, index: u64) -> Option<LogId> {
        let leader = self.leaders.get(self.slot(index)?.leader as usize)?;
        Some(LogId {
            leader_id: *leader,
            index,
        })
    }

    /// That entry, if the first one is of an earlier segment than the next.
    fn worth_freeing(&self, upto: u64) -> Option<LogId> {
        let segment = |index| {
            let segment = self.slot(index)?.segment.as_ref();
            segment.map(|segment| segment.id())
        };
        let first = segment(self.first)?;
        match segment(upto + 1) {
            Some(next) if next == first => None,
            _ => self.log_id(upto),
        }
    }

    fn last(&self) -> Option<LogId> {
        match self.next().checked_sub(1) {
            Some(last) if !self.slots.is_empty() => self.log_id(last),
            _ => self.purged,
        }
    }

    fn leader(&mut self, leader: LeaderIdOf<TypeConfig>) -> u32 {
        let known = self.leaders.iter().rposition(|known| *known == leader);
        let at = known.unwrap_or_else(|| {
            self.leaders.push(leader);
            self.leaders.len() - 1
        });
        at as u32
    }

    /// Whether an entry of that index can come next.
    fn continues(&self, index: u64) -> bool {
        match (&self.purged, self.slots.is_empty()) {
            (_, false) => index == self.next(),
            (Some(purged), true) => index == purged.index + 1,
            (None, true) => true,
        }
    }

    fn push(&mut self, id: LogId, len: usize, payload: u32) {
        if self.slots.is_empty() {
            self.first = id.index;
        }
        let leader = self.leader(id.leader_id);
        self.slots.push_back(Slot {
            leader,
            len: len as u32,
            payload,
            offset: 0,
            segment: None,
        });
    }

    /// Position in `recent` of an index.
    fn recent_at(&self, index: u64) -> Option<usize> {
        let first = self.next() - self.recent.len() as u64;
        let at = usize::try_from(index.checked_sub(first)?).ok()?;
        (at < self.recent.len()).then_some(at)
    }

    /// The entry has been written, unless it was truncated or purged since.
    fn place(&mut self, written: &Written) {
        let at = self.recent_at(written.index);
        let recent = at.and_then(|at| self.recent.get(at));
        if recent.is_none_or(|recent| recent.tag != written.tag) {
            return;
        }
        self.set_place(written.index, &written.segment, written.offset);
    }

    fn set_place(&mut self, index: u64, segment: &Arc<Segment>, offset: u64) {
        let at = index.checked_sub(self.first);
        if let Some(slot) = at.and_then(|at| self.slots.get_mut(at as usize)) {
            slot.segment = Some(segment.clone());
            slot.offset = offset as u32;
            self.flushed = Some(index);
        }
    }

    /// Drops entries from memory, oldest first, if the disk has them.
    fn evict(&mut self, cache_bytes: usize) {
        while self.recent_cost > cache_bytes {
            let first = self.next() - self.recent.len() as u64;
            let Some(slot) = self.slot(first).filter(|slot| slot.segment.is_some()) else {
                return;
            };
            self.recent_cost -= slot.cost();
            self.recent.pop_front();
        }
    }

    /// Removes the entries from that index on, last one first.
    fn truncate(&mut self, from: u64) {
        while self.next() > from {
            let Some(slot) = self.slots.pop_back() else {
                break;
            };
            if self.recent.pop_back().is_some() {
                self.recent_cost -= slot.cost();
            }
        }
        let purged = self.purged.map(|id| id.index);
        let last = from.checked_sub(1);
        self.flushed = self.flushed.min(last).max(purged);
    }

    /// Removes the entries up to that one; it need not be there.
    fn purge(&mut self, id: LogId) {
        while self.first <= id.index {
            let recent = self.recent.len() == self.slots.len();
            let Some(slot) = self.slots.pop_front() else {
                break;
            };
            if recent && self.recent.pop_front().is_some() {
                self.recent_cost -= slot.cost();
            }
            self.first += 1;
        }
        self.purged = Some(id);
        self.flushed = self.flushed.max(Some(id.index));
    }

    /// The first entries of a range, up to so many bytes: those to be read,
    /// and those at hand that follow them.
    fn take(&self, range: Range<u64>, budget: usize) -> (Vec<Place>, Vec<Entry>) {
        let (mut places, mut entries) = (Vec::new(), Vec::new());
        let mut cost = 0;
        for index in range.start.max(self.first)..range.end.min(self.next()) {
            let Some(slot) = self.slot(index) else { break };
            cost += slot.cost();
            if cost > budget && places.len() + entries.len() > 0 {
                break;
            }
            let at = self.recent_at(index);
            match (at.and_then(|at| self.recent.get(at)), &slot.segment) {
                (Some(recent), _) => entries.push(recent.entry.clone()),
                (None, Some(segment)) => places.push(Place {
                    index,
                    segment: segment.clone(),
                    offset: slot.offset,
                    len: slot.len,
                }),
                (None, None) => break,
            }
        }
        (places, entries)
    }

    /// Takes in a record found at start.
    fn replay(&mut self, record: &Replayed<'_>) -> Option<()> {
        match record.kind {
            Kind::Entry => self.replay_entry(record)?,
            Kind::Vote => self.vote = Some(decode(record.body)?),
            Kind::Committed => self.committed = decode(record.body)?,
            Kind::Truncate => self.truncate(record.index),
            Kind::Purge => self.purge(decode(record.body)?),
            Kind::Base | Kind::Mark | Kind::Payload => return None,
        }
        Some(())
    }

    fn replay_entry(&mut self, record: &Replayed<'_>) -> Option<()> {
        let entry: Entry = decode(record.body)?;
        let payload = payload(&entry).map_or((0, 0), |p| (p.len, p.crc));
        if entry.log_id.index != record.index || record.payload.unwrap_or((0, 0)) != payload {
            return None;
        }
        self.push(entry.log_id, record.body.len(), payload.0);
        self.set_place(record.index, record.segment, record.offset);
        Some(())
    }

    /// A commit index may have been saved that is beyond the entries which
    /// were.
    fn recovered(&mut self) -> Recovered {
        let last = self.last();
        self.committed = match self.committed {
            Some(id) if Some(id) <= self.purged => self.purged,
            Some(id) if Some(id.index) > last.map(|last| last.index) => last,
            Some(id) => self.log_id(id.index).filter(|there| *there == id),
            None => None,
        };
        Recovered {
            first: (!self.slots.is_empty()).then_some(self.first),
            last,
            vote: self.vote,
            committed: self.committed,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is on disk, while the table can not change.
    fn publish(&self, table: &Table) {
        let now = table.flushed.unwrap_or(0);
        self.flushed
            .send_if_modified(|flushed| std::mem::replace(flushed, now) != now);
    }

    fn append(&self, wal: &Wal, entries: Vec<Entry>, done: wal::Done) -> io::Result<()> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in &entries {
            records.push(record(entry)?);
        }
        let Some(last) = records.last_mut() else {
            done(Ok(()));
            return Ok(());
        };
        last.done = Some(done);
        let mut table = self.lock();
        table.tag += 1;
        let tag = table.tag;
        for (entry, record) in entries.into_iter().zip(&mut records) {
            if !table.continues(record.index) {
                return Err(invalid(format!(
                    "append: hole before entry {}",
                    record.index
                )));
            }
            record.tag = tag;
            let payload = record.payload.len() as u32;
            table.push(entry.log_id, record.body.len(), payload);
            table.recent_cost += table.slots.back().map_or(0, Slot::cost);
            table.recent.push_back(Recent { entry, tag });
        }
        // Under the lock, so that the log has the order of the table.
        wal.push(records)
    }

    fn truncate(&self, wal: &Wal, from: u64) -> io::Result<()> {
        let mut table = self.lock();
        if from >= table.next() {
            return Ok(());
        }
        table.truncate(from);
        self.publish(&table);
        wal.push(vec![Record::new(Kind::Truncate, from, Vec::new())])
    }

    fn purge(&self, wal: &Wal, id: LogId) -> io::Result<()> {
        let mut table = self.lock();
        if table.purged >= Some(id) {
            return Ok(());
        }
        table.purge(id);
        self.publish(&table);
        wal.push(vec![Record::new(Kind::Purge, id.index, encode(&id)?)])
    }

    async fn read(&self, range: Range<u64>, budget: usize) -> io::Result<Vec<Entry>> {
        let (places, recent) = self.lock().take(range, budget);
        if places.is_empty() {
            return Ok(recent);
        }
        let read = move || {
            places
                .iter()
                .map(Place::read)
                .collect::<io::Result<Vec<_>>>()
        };
        let mut entries = tokio::task::spawn_blocking(read).await??;
        entries.extend(recent);
        Ok(entries)
    }
}

impl Index for Shared {
    fn recovered(&self, record: &Replayed<'_>) -> bool {
        self.lock().replay(record).is_some()
    }

    fn flushed(&self, entries: &[Written]) {
        let mut table = self.lock();
        for written in entries {
            table.place(written);
        }
        table.evict(self.cache_bytes);
        self.publish(&table);
    }
}

impl Place {
    fn read(&self) -> io::Result<Entry> {
        let offset = u64::from(self.offset);
        let body = self.segment.entry(offset, self.len as usize, self.index)?;
        let mut entry: Entry = decode(&body)
            .ok_or_else(|| invalid(format!("{}: entry {} is damaged", self.segment, self.index)))?;
        if let EntryPayload::Normal(command) = &mut entry.payload {
            let payload = &mut command.payload;
            if payload.len > 0 {
                payload.at = At::Log {
                    segment: self.segment.clone(),
                    offset: payload_offset(offset, payload.len),
                };
            }
        }
        Ok(entry)
    }
}

fn payload(entry: &Entry) -> Option<&Payload> {
    match &entry.payload {
        EntryPayload::Normal(command) => Some(&command.payload),
        _ => None,
    }
}

fn record(entry: &Entry) -> io::Result<Record> {
    let mut record = Record::new(Kind::Entry, entry.log_id.index, encode(entry)?);
    if let Some(payload) = payload(entry) {
        record.payload = match payload.len {
            0 => Bytes::new(),
            _ => payload.bytes()?,
        };
        record.payload_crc = payload.crc;
    }
    Ok(record)
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

/// None unless the bytes are one value and nothing else.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn bounds<R: RangeBounds<u64>>(range: &R) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

/// A walk over a range of entries, batch by batch.
struct Walk {
    shared: Arc<Shared>,
    range: Range<u64>,
    begun: bool,
    batch: vec::IntoIter<Entry>,
    /// Only as long as this leader's vote is the saved one.
    leader: Option<LeaderIdOf<TypeConfig>>,
}

impl Walk {
    fn new(shared: &Arc<Shared>, range: Range<u64>) -> Walk {
        Walk {
            shared: shared.clone(),
            range,
            begun: false,
            batch: Vec::new().into_iter(),
            leader: None,
        }
    }

    fn check_leader(&self) -> Result<(), LeaderBoundedStreamError<TypeConfig>> {
        let Some(leader) = self.leader else {
            return Ok(());
        };
        match self.shared.lock().vote {
            Some(vote) if vote.leader_id == leader && vote.committed => Ok(()),
            vote => Err(LeaderChanged::new(leader, vote).into()),
        }
    }

    async fn next(&mut self) -> Result<Option<Entry>, LeaderBoundedStreamError<TypeConfig>> {
        if self.batch.len() == 0 && !self.range.is_empty() {
            self.check_leader()?;
            let batch = self.shared.read(self.range.clone(), BATCH).await?;
            self.batch = batch.into_iter();
        }
        self.check_leader()?;
        let Some(entry) = self.batch.next() else {
            return Ok(None);
        };
        let index = entry.log_id.index;
        // What was purged may be missing at the beginning, and only there.
        if self.begun && index != self.range.start {
            let text = format!("entry {} is missing", self.range.start);
            return Err(invalid(text).into());
        }
        self.begun = true;
        self.range.start = index + 1;
        Ok(Some(entry))
    }
}

fn io_error(err: LeaderBoundedStreamError<TypeConfig>) -> io::Error {
    match err {
        LeaderBoundedStreamError::IoError(err) => err,
        other => io::Error::other(other),
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.shared.read(bounds(&range), usize::MAX).await
    }

    /// Empty if the first of them has been freed: these are for a peer, and a
    /// hole before them would not be seen there.  openraft sends a heartbeat
    /// instead.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut entries = self.shared.read(start..end, BATCH).await?;
        if entries.first().map(|entry| entry.log_id.index) != Some(start) {
            entries.clear();
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let walk = Walk::new(&self.shared, bounds(&range));
        stream::try_unfold(walk, |mut walk| async move {
            let entry = walk.next().await.map_err(io_error)?;
            Ok(entry.map(|entry| (entry, walk)))
        })
    }

    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, LeaderBoundedStreamError<TypeConfig>>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut walk = Walk::new(&self.shared, bounds(&range));
        walk.leader = Some(leader);
        stream::try_unfold(walk, |mut walk| async move {
            let entry = walk.next().await?;
            Ok(entry.map(|entry| (entry, walk)))
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let table = self.shared.lock();
        Ok(LogState {
            last_purged_log_id: table.purged,
            last_log_id: table.last(),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            shared: self.shared.clone(),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        let mut record = Record::new(Kind::Vote, 0, encode(vote)?);
        record.done = Some(Box::new(move |result| {
            let _ = sender.send(result);
        }));
        self.wal.push(vec![record])?;
        receiver.await.map_err(io::Error::other)??;
        self.shared.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.lock().committed = committed;
        self.wal.set_committed(encode(&committed)?);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let done = Box::new(move |result| callback.io_completed(result));
        self.shared
            .append(&self.wal, entries.into_iter().collect(), done)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.shared.truncate(&self.wal, from)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.shared.purge(&self.wal, log_id)
    }
}
