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

//! The records of the log: encoding, checking, and a cursor over a segment.
//! Runs in raftd.  Trusts no byte that it reads.

#![forbid(unsafe_code)]

use super::segment::{Segment, SegmentId};
use std::io;

/// The first page of a segment is its own header; records follow.
pub(super) const SEGMENT_HEADER: u64 = 4096;
/// Length of a record header.
pub(super) const HEAD: usize = 40;
/// Longest entry with its payload, as stored.
pub const ENTRY_MAX: usize = (1 << 20) + (64 << 10);
/// Room that a mark takes.
pub(super) const MARK: usize = HEAD + MARK_BODY;

const MAGIC: u32 = u32::from_le_bytes(*b"dfWR");
const MARK_BODY: usize = 32;
/// Read-ahead of a cursor.
const WINDOW: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Base = 1,
    Mark = 2,
    Payload = 3,
    Entry = 4,
    Vote = 5,
    Committed = 6,
    Truncate = 7,
    Purge = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Base,
            2 => Kind::Mark,
            3 => Kind::Payload,
            4 => Kind::Entry,
            5 => Kind::Vote,
            6 => Kind::Committed,
            7 => Kind::Truncate,
            8 => Kind::Purge,
            _ => return None,
        })
    }
}

/// A place in the log, ordered as the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pos {
    pub segment: SegmentId,
    pub offset: u64,
}

/// Records begin at multiples of 8.
pub(super) fn align(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Room that a record takes.
pub(super) fn record_len(body: usize) -> usize {
    HEAD + align(body)
}

pub(super) fn pad(out: &mut Vec<u8>, body: usize) {
    out.resize(out.len() + align(body) - body, 0);
}

/// A record header as read.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub kind: Kind,
    pub index: u64,
    pub len: u32,
    pub crc: u32,
    pub chain: u32,
    /// crc32c of what precedes the chain field, to go on from the previous
    /// record's.
    raw: [u8; 32],
}

impl Head {
    fn decode(bytes: &[u8], salt: u64) -> Option<Head> {
        let mut take = Take(bytes);
        if take.u32()? != MAGIC {
            return None;
        }
        let kind = Kind::from_byte(take.u8()?)?;
        take.bytes(3)?;
        if take.u64()? != salt {
            return None;
        }
        let head = Head {
            kind,
            index: take.u64()?,
            len: take.u32()?,
            crc: take.u32()?,
            chain: take.u32()?,
            raw: bytes.get(..32)?.try_into().ok()?,
        };
        (head.len as usize <= ENTRY_MAX).then_some(head)
    }

    /// Whether it follows the record whose chain value this is.
    fn follows(&self, chain: u32) -> bool {
        crc32c::crc32c_append(chain, &self.raw) == self.chain
    }

    /// Where the next record begins.
    pub fn next(&self, at: u64) -> u64 {
        at + record_len(self.len as usize) as u64
    }
}

/// Appends a record header; the chain moves on.
pub(super) fn put_head(
    out: &mut Vec<u8>,
    salt: u64,
    chain: &mut u32,
    kind: Kind,
    index: u64,
    len: usize,
    crc: u32,
) {
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    out.extend_from_slice(&salt.to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    *chain = crc32c::crc32c_append(*chain, out.get(start..).unwrap_or(&[]));
    out.extend_from_slice(&chain.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Appends a whole record.
pub(super) fn put(
    out: &mut Vec<u8>,
    salt: u64,
    chain: &mut u32,
    kind: Kind,
    index: u64,
    body: &[u8],
) {
    let crc = crc32c::crc32c(body);
    put_head(out, salt, chain, kind, index, body.len(), crc);
    out.extend_from_slice(body);
    pad(out, body.len());
}

/// The body of a mark.  It can be told from user data and from a former life
/// of the segment without the chain: by salt, place and checksum.
pub(super) struct Mark {
    pub durable: Pos,
    /// Where the mark itself begins.
    pub offset: u64,
    /// Never the same twice.
    pub nonce: u64,
}

impl Mark {
    pub fn encode(&self) -> [u8; MARK_BODY] {
        let mut out = [0; MARK_BODY];
        let words = [
            self.durable.segment.0,
            self.durable.offset,
            self.offset,
            self.nonce,
        ];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub fn decode(body: &[u8]) -> Option<Mark> {
        let mut take = Take(body);
        Some(Mark {
            durable: take.pos()?,
            offset: take.u64()?,
            nonce: take.u64()?,
        })
    }
}

/// What recovery must know of the log before a segment.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// First and last index of the entries that count.
    pub live: Option<(u64, u64)>,
    /// Bodies of the last such records; empty if there were none.
    pub vote: Vec<u8>,
    pub committed: Vec<u8>,
    pub purge: (u64, Vec<u8>),
}

impl State {
    /// Takes in a record, in log order.
    pub fn note(&mut self, kind: Kind, index: u64, body: &[u8]) {
        match kind {
            Kind::Entry => {
                let first = self.live.map_or(index, |(first, _)| first);
                self.live = Some((first, index));
            }
            Kind::Vote => self.vote = body.to_vec(),
            Kind::Committed => self.committed = body.to_vec(),
            Kind::Truncate => cut(&mut self.live, kind, index),
            Kind::Purge => {
                cut(&mut self.live, kind, index);
                self.purge = (index, body.to_vec());
            }
            Kind::Base | Kind::Mark | Kind::Payload => {}
        }
    }
}

/// What a truncate (first index to go) or purge (last index to go) leaves of
/// a range of entries.
pub(super) fn cut(range: &mut Option<(u64, u64)>, kind: Kind, index: u64) {
    let Some((first, last)) = *range else { return };
    *range = match kind {
        Kind::Truncate if index <= first => None,
        Kind::Truncate => Some((first, last.min(index - 1))),
        Kind::Purge if index >= last => None,
        Kind::Purge => Some((first.max(index + 1), last)),
        _ => return,
    };
}

/// The body of a base: what the segment follows, and the state there.
pub(super) struct Base {
    pub prev: Pos,
    pub prev_chain: u32,
    pub state: State,
}

impl Base {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let (first, last) = self.state.live.unwrap_or((1, 0));
        for word in [
            self.prev.segment.0,
            self.prev.offset,
            u64::from(self.prev_chain),
            first,
            last,
            self.state.purge.0,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for body in [&self.state.vote, &self.state.committed, &self.state.purge.1] {
            out.push(body.len() as u8);
            out.extend_from_slice(body);
        }
        out
    }

    pub fn decode(body: &[u8]) -> Option<Base> {
        let mut take = Take(body);
        let prev = take.pos()?;
        let prev_chain = take.u64()? as u32;
        let (first, last) = (take.u64()?, take.u64()?);
        let purged = take.u64()?;
        Some(Base {
            prev,
            prev_chain,
            state: State {
                live: (first <= last).then_some((first, last)),
                vote: take.short()?,
                committed: take.short()?,
                purge: (purged, take.short()?),
            },
        })
    }
}

/// Reads fields off the front of a slice.
pub(super) struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    fn pos(&mut self) -> Option<Pos> {
        Some(Pos {
            segment: SegmentId(self.u64()?),
            offset: self.u64()?,
        })
    }

    fn short(&mut self) -> Option<Vec<u8>> {
        let len = self.u8()?;
        Some(self.bytes(usize::from(len))?.to_vec())
    }
}

/// Reads one segment forward through a window.
pub(super) struct Cursor<'a> {
    segment: &'a Segment,
    buf: Vec<u8>,
    start: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(segment: &'a Segment) -> Cursor<'a> {
        Cursor {
            segment,
            buf: Vec::new(),
            start: 0,
        }
    }

    /// The bytes there, or None if they are not within the segment.
    pub fn get(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let size = self.segment.size();
        let end = match at.checked_add(len as u64) {
            Some(end) if end <= size => end,
            _ => return Ok(None),
        };
        if at < self.start || end > self.start + self.buf.len() as u64 {
            let want = (len as u64).max(WINDOW).min(size - at);
            self.buf.resize(want as usize, 0);
            self.segment.read_exact_at(&mut self.buf, at)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(self.buf.get(from..from + len))
    }

    fn head(&mut self, at: u64) -> io::Result<Option<Head>> {
        let salt = self.segment.salt();
        Ok(self.get(at, HEAD)?.and_then(|b| Head::decode(b, salt)))
    }

    /// The body of the record there, if its checksum is right.
    pub fn body(&mut self, at: u64, head: &Head) -> io::Result<Option<&[u8]>> {
        let body = self.get(at + HEAD as u64, head.len as usize)?;
        Ok(body.filter(|b| crc32c::crc32c(b) == head.crc))
    }

    /// The record there, if it is whole and follows the one before it.
    pub fn record(&mut self, at: u64, chain: u32) -> io::Result<Option<Head>> {
        match self.head(at)? {
            Some(head) if head.follows(chain) => {
                Ok(self.body(at, &head)?.is_some().then_some(head))
            }
            _ => Ok(None),
        }
    }

    /// The base of the segment, with its header.
    pub fn base(&mut self) -> io::Result<Option<(Head, Base)>> {
        let at = SEGMENT_HEADER;
        let head = match self.head(at)? {
            Some(head) if head.kind == Kind::Base => head,
            _ => return Ok(None),
        };
        let base = self.body(at, &head)?.and_then(Base::decode);
        Ok(base
            .filter(|base| head.follows(base.prev_chain))
            .map(|base| (head, base)))
    }

    /// The mark there, chained or not.
    pub fn mark(&mut self, at: u64) -> io::Result<Option<Mark>> {
        let magic = MAGIC.to_le_bytes();
        if self.get(at, magic.len())? != Some(&magic[..]) {
            return Ok(None);
        }
        let head = match self.head(at)? {
            Some(head) if head.kind == Kind::Mark => head,
            _ => return Ok(None),
        };
        let mark = self.body(at, &head)?.and_then(Mark::decode);
        Ok(mark.filter(|mark| mark.offset == at))
    }
}

/// The body of an entry record read on its own.
pub(super) fn check_entry(mut record: Vec<u8>, salt: u64, index: u64) -> Option<Vec<u8>> {
    let head = Head::decode(&record, salt)?;
    let body = record.get(HEAD..)?;
    if head.kind != Kind::Entry
        || head.index != index
        || head.len as usize != body.len()
        || head.crc != crc32c::crc32c(body)
    {
        return None;
    }
    record.drain(..HEAD);
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_round_trip() {
        let base = Base {
            prev: Pos {
                segment: SegmentId(7),
                offset: 4711,
            },
            prev_chain: 0xdead_beef,
            state: State {
                live: Some((3, 9)),
                vote: vec![1, 2],
                committed: Vec::new(),
                purge: (2, vec![3]),
            },
        };
        let body = base.encode();
        let back = Base::decode(&body).unwrap();
        assert_eq!(back.prev, base.prev);
        assert_eq!(back.prev_chain, base.prev_chain);
        assert_eq!(back.state.live, base.state.live);
        assert_eq!(back.state.vote, base.state.vote);
        assert_eq!(back.state.purge, base.state.purge);
        for n in 0..body.len() {
            assert!(Base::decode(&body[..n]).is_none());
        }
    }

    #[test]
    fn ranges_are_cut() {
        let cases = [
            (Kind::Truncate, 3, None),
            (Kind::Truncate, 5, Some((3, 4))),
            (Kind::Truncate, 20, Some((3, 9))),
            (Kind::Purge, 2, Some((3, 9))),
            (Kind::Purge, 5, Some((6, 9))),
            (Kind::Purge, 9, None),
        ];
        for (kind, index, want) in cases {
            let mut range = Some((3, 9));
            cut(&mut range, kind, index);
            assert_eq!(range, want);
        }
    }

    #[test]
    fn a_record_follows_one_predecessor() {
        let (mut out, mut chain) = (Vec::new(), 5);
        put(&mut out, 1, &mut chain, Kind::Vote, 0, b"abc");
        assert_eq!(out.len(), record_len(3));
        let head = Head::decode(&out, 1).unwrap();
        assert!(head.follows(5) && !head.follows(6));
        assert!(Head::decode(&out, 2).is_none());
        assert_eq!(head.chain, chain);
    }
}
