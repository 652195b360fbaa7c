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

//! Finding the log again after a stop of any kind.  Runs in raftd, before
//! openraft sees the log.  Never cuts what was once durable: an invalid
//! record below the highest mark is bit rot and stops everything.
//!
//! ```text
//!            durable for certain      only in the page cache, maybe
//!  base ... records ... M | mark records ... | p  invalid
//!                       ^                    ^
//!                       highest durable      first invalid record
//!                       position of a mark
//! ```
//!
//! The records between M and p are copied to a fresh segment and synced, and
//! the old segment ends at M from then on: the base of the fresh one says so,
//! and is written last.

#![forbid(unsafe_code)]

use super::flush::Live;
use super::record::{cut, put, Base, Cursor, Head, Kind, Pos, State, ENTRY_MAX, HEAD};
use super::record::{Mark, SEGMENT_HEADER};
use super::segment::{Found, Pool, Segment, SegmentId};
use super::{Index, Replayed, WalError, GROUP_MAX};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Where the flush thread goes on.
pub(super) struct Opened {
    pub ring: VecDeque<Live>,
    pub offset: u64,
    pub chain: u32,
    pub state: State,
    pub durable: Pos,
    /// A commit index that stood above the highest mark; to be written again.
    pub committed: Option<Vec<u8>>,
    /// Records were rewritten that no mark covers yet.
    pub unmarked: bool,
}

/// A segment that has a base, so the log passes or passed through it.
struct Active {
    segment: Arc<Segment>,
    head: Head,
    base: Base,
}

impl Active {
    fn first(&self) -> u64 {
        self.head.next(SEGMENT_HEADER)
    }

    /// The first segment ever names itself as its predecessor.
    fn genesis(&self) -> bool {
        self.base.prev.segment == self.segment.id()
    }
}

/// One stretch of a segment to replay, or the tail beyond it.
struct Stretch {
    id: SegmentId,
    end: u64,
}

/// What a walk over the newest segment has found.
struct Survey {
    /// M, if it is in this segment, and the chain value there.
    mark: Option<(u64, u32)>,
    /// p
    end: u64,
    /// Records between them that must not be lost.
    content: bool,
    committed: Option<Vec<u8>>,
}

struct Recovery<'a> {
    pool: &'a Arc<Pool>,
    index: &'a dyn Index,
    active: BTreeMap<SegmentId, Active>,
    /// Files beyond the newest segment: spares.
    free: Vec<SegmentId>,
    /// Files before it that the log does not pass through; free once it is
    /// certain that it does not need them.
    old: Vec<SegmentId>,
    ring: VecDeque<Live>,
    state: State,
    /// Entries that counted before the first segment that is left; when all
    /// is replayed none of them may count any more.
    prior: Option<(u64, u64)>,
}

pub(super) fn recover(pool: &Arc<Pool>, index: &dyn Index) -> Result<Opened, WalError> {
    let mut recovery = Recovery {
        pool,
        index,
        active: BTreeMap::new(),
        free: Vec::new(),
        old: Vec::new(),
        ring: VecDeque::new(),
        state: State::default(),
        prior: None,
    };
    recovery.classify()?;
    match recovery.active.keys().next_back().copied() {
        Some(newest) => recovery.reopen(newest),
        None => recovery.create(),
    }
}

impl Recovery<'_> {
    /// Sorts the files into active and free ones, and refuses to take a
    /// damaged active one for a spare.
    fn classify(&mut self) -> Result<(), WalError> {
        let mut blank = Vec::new();
        let mut bad = Vec::new();
        for (id, found) in self.pool.list()? {
            match found {
                Found::Bad => bad.push(id),
                Found::Free => self.old.push(id),
                Found::Segment(segment) => match Cursor::new(&segment).base()? {
                    Some((head, base)) => {
                        let active = Active {
                            segment,
                            head,
                            base,
                        };
                        self.active.insert(id, active);
                    }
                    None => blank.push(segment),
                },
            }
        }
        let newest = self.active.keys().next_back().copied().unwrap_or_default();
        if let Some(id) = bad.iter().find(|id| **id > newest) {
            return Err(bit_rot(*id, 0));
        }
        let (old, free): (Vec<_>, Vec<_>) = blank.iter().partition(|s| s.id() <= newest);
        if let Some(next) = free.first() {
            if marked_beyond(next, SEGMENT_HEADER)? {
                return Err(bit_rot(next.id(), SEGMENT_HEADER));
            }
        }
        self.free.extend(free.iter().map(|segment| segment.id()));
        self.old.extend(old.iter().map(|segment| segment.id()));
        self.old.extend(bad);
        Ok(())
    }

    /// A log that is not there yet.
    fn create(mut self) -> Result<Opened, WalError> {
        self.pool.start(SegmentId(1), self.free.drain(..));
        let segment = self.pool.take_any()?;
        let prev = Pos {
            segment: segment.id(),
            offset: SEGMENT_HEADER,
        };
        let (image, chain) = self.image(&segment, prev, 0);
        segment.file().write_all_at(&image, SEGMENT_HEADER)?;
        segment.file().sync_data()?;
        let offset = SEGMENT_HEADER + image.len() as u64;
        self.ring.push_back(Live { segment, hi: None });
        self.finish(offset, chain)
    }

    /// A base for a segment, and the chain value after it.
    fn image(&self, segment: &Segment, prev: Pos, prev_chain: u32) -> (Vec<u8>, u32) {
        let base = Base {
            prev,
            prev_chain,
            state: self.state.clone(),
        };
        let (mut image, mut chain) = (Vec::new(), prev_chain);
        let body = base.encode();
        put(&mut image, segment.salt(), &mut chain, Kind::Base, 0, &body);
        (image, chain)
    }

    fn finish(self, offset: u64, chain: u32) -> Result<Opened, WalError> {
        for id in self.old {
            self.pool.give_back(id);
        }
        match self.pool.ensure() {
            // The pool goes on trying; the log can still be read.
            Err(err) if err.kind() == io::ErrorKind::StorageFull => {}
            other => other?,
        }
        let segment = self.ring.back().map(|live| live.segment.id());
        Ok(Opened {
            durable: Pos {
                segment: segment.unwrap_or_default(),
                offset,
            },
            ring: self.ring,
            offset,
            chain,
            state: self.state,
            committed: None,
            unmarked: false,
        })
    }

    fn reopen(mut self, newest: SegmentId) -> Result<Opened, WalError> {
        let Some(newest) = self.active.remove(&newest) else {
            return Err(bit_rot(newest, SEGMENT_HEADER));
        };
        let newest_id = newest.segment.id();
        let survey = survey(&newest)?;
        if marked_beyond(&newest.segment, survey.end)? {
            return Err(bit_rot(newest_id, survey.end));
        }
        // Where what is durable for certain ends, and the tail begins.
        let (durable, tail, tail_chain) = match survey.mark {
            Some((offset, chain)) => (here(newest_id, offset), offset, chain),
            None if newest.genesis() => {
                let first = newest.first();
                (here(newest_id, first), first, newest.head.chain)
            }
            None => (newest.base.prev, newest.first(), newest.head.chain),
        };
        let segment = newest.segment.clone();
        self.active.insert(newest_id, newest);

        let chain = self.replay_to(durable)?;
        let dropped = durable.segment != newest_id;
        self.old
            .extend(self.active.keys().filter(|id| **id != newest_id));
        if !survey.content {
            // The next record goes to M.  A newest segment that begins above
            // it would hide that record, so it loses its base first.
            self.check_prior()?;
            let next = newest_id.0 + u64::from(!dropped);
            let newest = dropped.then_some(newest_id).into_iter();
            self.pool
                .start(SegmentId(next), newest.chain(self.free.drain(..)));
            if let Some(body) = &survey.committed {
                self.note_committed(&segment, tail, body)?;
            }
            let mut opened = self.finish(durable.offset, chain)?;
            opened.committed = survey.committed;
            return Ok(opened);
        }
        self.pool
            .start(SegmentId(newest_id.0 + 1), self.free.drain(..));
        let tail = Tail {
            from: tail,
            chain: tail_chain,
            end: survey.end,
        };
        let (offset, chain) = self.rewrite(&segment, tail, durable, chain)?;
        self.check_prior()?;
        if dropped {
            self.old.push(newest_id);
        }
        let mut opened = self.finish(offset, chain)?;
        opened.unmarked = true;
        Ok(opened)
    }

    /// The commit index that stood behind the last mark.  It is written anew;
    /// it need not have been durable, for what it says stays true, and all that
    /// it says it of is.
    fn note_committed(
        &mut self,
        segment: &Arc<Segment>,
        at: u64,
        body: &[u8],
    ) -> Result<(), WalError> {
        let record = Replayed {
            kind: Kind::Committed,
            index: 0,
            body,
            segment,
            offset: at,
            payload: None,
        };
        match self.index.recovered(&record) {
            true => Ok(()),
            false => Err(bit_rot(segment.id(), at)),
        }
    }

    /// Replays the log from the first segment that is left up to a position;
    /// the chain value there.
    fn replay_to(&mut self, durable: Pos) -> Result<u32, WalError> {
        let mut stretches = vec![Stretch {
            id: durable.segment,
            end: durable.offset,
        }];
        let mut id = durable.segment;
        while let Some(active) = self.active.get(&id) {
            let prev = active.base.prev;
            if active.genesis() || prev.segment > id || !self.active.contains_key(&prev.segment) {
                break;
            }
            id = prev.segment;
            stretches.push(Stretch {
                id,
                end: prev.offset,
            });
        }
        let mut chain = None;
        for stretch in stretches.iter().rev() {
            let Some(active) = self.active.remove(&stretch.id) else {
                return Err(bit_rot(stretch.id, 0));
            };
            if chain.is_some_and(|chain| chain != active.base.prev_chain) {
                return Err(bit_rot(stretch.id, SEGMENT_HEADER));
            }
            if chain.is_none() {
                self.begin(&active)?;
            }
            let from = active.first();
            chain = Some(self.replay(&active.segment, from, active.head.chain, stretch.end)?);
        }
        chain.ok_or(bit_rot(durable.segment, 0))
    }

    /// Takes over the state before the first segment that is left.
    fn begin(&mut self, oldest: &Active) -> Result<(), WalError> {
        self.state = oldest.base.state.clone();
        self.prior = self.state.live;
        // Entries are counted from here on; `prior` watches over the others.
        self.state.live = None;
        let (purged, purge) = &self.state.purge;
        for (kind, index, body) in [
            (Kind::Purge, *purged, purge),
            (Kind::Vote, 0, &self.state.vote),
            (Kind::Committed, 0, &self.state.committed),
        ] {
            let record = Replayed {
                kind,
                index,
                body,
                segment: &oldest.segment,
                offset: SEGMENT_HEADER,
                payload: None,
            };
            if !body.is_empty() && !self.index.recovered(&record) {
                return Err(bit_rot(oldest.segment.id(), SEGMENT_HEADER));
            }
        }
        Ok(())
    }

    /// Replays records that must all be valid; the chain value at the end.
    fn replay(
        &mut self,
        segment: &Arc<Segment>,
        from: u64,
        mut chain: u32,
        end: u64,
    ) -> Result<u32, WalError> {
        self.ring.push_back(Live {
            segment: segment.clone(),
            hi: None,
        });
        let mut cursor = Cursor::new(segment);
        let (mut at, mut payload) = (from, None);
        while at < end {
            let rot = bit_rot(segment.id(), at);
            let Some(head) = cursor.record(at, chain)? else {
                return Err(rot);
            };
            if head.kind == Kind::Payload {
                payload = Some((head.len, head.crc));
            } else {
                let body = cursor.get(at + HEAD as u64, head.len as usize)?;
                let record = Replayed {
                    kind: head.kind,
                    index: head.index,
                    body: body.unwrap_or(&[]),
                    segment,
                    offset: at,
                    payload: payload.take(),
                };
                if !self.take_in(&record) {
                    return Err(rot);
                }
            }
            (at, chain) = (head.next(at), head.chain);
        }
        if at != end {
            return Err(bit_rot(segment.id(), end));
        }
        Ok(chain)
    }

    /// False if the record makes no sense where it is.
    fn take_in(&mut self, record: &Replayed<'_>) -> bool {
        let (kind, index) = (record.kind, record.index);
        match kind {
            Kind::Mark => return true,
            Kind::Base | Kind::Payload => return false,
            Kind::Entry => {
                // A hole can not be.
                if self.state.live.is_some_and(|(_, last)| index != last + 1) {
                    return false;
                }
                if let Some(live) = self.ring.back_mut() {
                    live.hi = Some(index);
                }
            }
            Kind::Truncate => {
                cut(&mut self.prior, kind, index);
                self.ring.iter_mut().for_each(|live| live.truncate(index));
            }
            Kind::Purge => cut(&mut self.prior, kind, index),
            Kind::Vote | Kind::Committed => {}
        }
        self.state.note(kind, index, record.body);
        self.index.recovered(record)
    }

    /// Copies the tail of the newest segment to a fresh one, makes that a
    /// part of the log, and replays it; where it ends, and the chain there.
    fn rewrite(
        &mut self,
        newest: &Segment,
        tail: Tail,
        prev: Pos,
        prev_chain: u32,
    ) -> Result<(u64, u32), WalError> {
        let fresh = self.pool.take_any()?;
        let (mut image, base_chain) = self.image(&fresh, prev, prev_chain);
        let base = image.len();
        copy_tail(newest, &tail, &mut image, fresh.salt(), base_chain)?;
        let end = SEGMENT_HEADER + image.len() as u64;
        if end > fresh.size() {
            return Err(WalError::Io(io::Error::other(format!(
                "{newest}: tail does not fit in a segment of {} bytes",
                fresh.size()
            ))));
        }
        let (base_image, records) = image.split_at(base);
        let first = SEGMENT_HEADER + base as u64;
        fresh.file().write_all_at(records, first)?;
        fresh.file().sync_data()?;
        fresh.file().write_all_at(base_image, SEGMENT_HEADER)?;
        fresh.file().sync_data()?;
        let chain = self.replay(&fresh, first, base_chain, end)?;
        Ok((end, chain))
    }

    /// A segment that is missing must have held nothing that counts.
    fn check_prior(&self) -> Result<(), WalError> {
        let oldest = self.ring.front().map(|live| live.segment.id());
        match (self.prior, oldest) {
            (Some(_), Some(id)) => Err(bit_rot(SegmentId(id.0.saturating_sub(1)), 0)),
            _ => Ok(()),
        }
    }
}

/// The records of a segment that no mark covers.
struct Tail {
    from: u64,
    chain: u32,
    end: u64,
}

fn copy_tail(
    segment: &Segment,
    tail: &Tail,
    image: &mut Vec<u8>,
    salt: u64,
    mut new_chain: u32,
) -> Result<(), WalError> {
    let mut cursor = Cursor::new(segment);
    let (mut at, mut chain) = (tail.from, tail.chain);
    let mut whole = image.len();
    while at < tail.end {
        let Some(head) = cursor.record(at, chain)? else {
            return Err(bit_rot(segment.id(), at));
        };
        if !matches!(head.kind, Kind::Mark | Kind::Base) {
            let body = cursor.get(at + HEAD as u64, head.len as usize)?;
            let body = body.unwrap_or(&[]);
            put(image, salt, &mut new_chain, head.kind, head.index, body);
        }
        // A payload whose entry was cut off goes with it.
        if head.kind != Kind::Payload {
            whole = image.len();
        }
        (at, chain) = (head.next(at), head.chain);
    }
    image.truncate(whole);
    Ok(())
}

fn survey(newest: &Active) -> Result<Survey, WalError> {
    let mut survey = Survey {
        mark: None,
        end: newest.first(),
        content: false,
        committed: None,
    };
    let mut chain = newest.head.chain;
    let mut cursor = Cursor::new(&newest.segment);
    while let Some(head) = cursor.record(survey.end, chain)? {
        let at = survey.end;
        let body = cursor.get(at + HEAD as u64, head.len as usize)?;
        match head.kind {
            Kind::Mark => {
                let mark = body.and_then(Mark::decode);
                if mark.is_some_and(|m| m.durable == here(newest.segment.id(), at)) {
                    survey.mark = Some((at, chain));
                    survey.content = false;
                    survey.committed = None;
                }
            }
            Kind::Committed => survey.committed = body.map(<[u8]>::to_vec),
            // A payload counts when its entry does.
            Kind::Payload => {}
            _ => survey.content = true,
        }
        (survey.end, chain) = (head.next(at), head.chain);
    }
    Ok(survey)
}

/// Whether a mark after that place says that more was durable than stands
/// before it.  The invalid record there is of one group, and the next group
/// begins with a mark.
fn marked_beyond(segment: &Segment, from: u64) -> io::Result<bool> {
    let beyond = here(segment.id(), from);
    let end = segment
        .size()
        .min(from + (GROUP_MAX + 2 * ENTRY_MAX) as u64);
    let mut cursor = Cursor::new(segment);
    for at in (from..end).step_by(8) {
        if cursor.mark(at)?.is_some_and(|mark| mark.durable > beyond) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn here(segment: SegmentId, offset: u64) -> Pos {
    Pos { segment, offset }
}

fn bit_rot(segment: SegmentId, offset: u64) -> WalError {
    WalError::BitRot { segment, offset }
}
