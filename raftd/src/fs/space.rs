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

//! Room: which blocks files have, how much the tree takes, and what the
//! voters say they can hold.  Runs in raftd, pure.  The disk of this node is
//! never asked: only what is in the log may refuse an operation.
//!
//! The metadata takes room as well.  An inode, with its first name and the
//! contents of a small file, counts for one block of the disk, which is about
//! the most that it can take; so do each further name and every 32 extents, and
//! long values count for as many as they need.  A voter measures its disk and
//! reports that on top of what was so counted, so what was counted too high
//! comes back with the next report.  What is removed from the metadata leaves
//! room for metadata only, which a voter knows and `inodes` of its report says.

#![forbid(unsafe_code)]

use super::inode::{self, key, key2, number};
use super::quota::{self, Limit};
use crate::store::meta::{MetaError, View, Writer};
use common::fs::{FsError, InodeNo, NodeId, Statfs, BLOCK};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

const SUPER: &[u8] = b"s";
const CAPACITY: u8 = b'k';
const EXTENT: u8 = b'e';

/// Blocks of one extent.
const BITS: u64 = 256;

/// So many extents take a page of the metadata that is half full, which is
/// what an inode counts as.
const EXTENTS_PER_RECORD: u64 = 32;

/// What counts as little room.  Small enough that most trees have more, and large
/// enough for what all nodes together write while nobody has looked.
pub const SHORT: u64 = 64 << 20;
/// The same of the metadata, in units of one inode.
const SHORT_RECORDS: u64 = 4096;

/// What statfs tells before any voter has reported.
const UNKNOWN_BYTES: u64 = 1 << 50;
const UNKNOWN_INODES: u64 = 1 << 32;

/// The counters of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Super {
    pub next_ino: InodeNo,
    /// Blocks of all backing files.
    pub used_blocks: u64,
    pub used_inodes: u64,
    /// Blocks that are charged for and are in the metadata: one for each small
    /// file, and those of large attributes.
    pub inline_blocks: u64,
    /// What names and long values take of the metadata beside the inodes, in
    /// units of one inode.
    pub extra: u64,
    /// For the whole tree, set by the operator.
    pub limit: Limit,
    /// The least that any voter can hold; None while none has said.
    pub room: Option<Capacity>,
    /// No live peer needs the log up to and including this index.
    pub floor: u64,
    /// Of all backing files.
    pub extents: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub bytes: u64,
    pub inodes: u64,
}

impl Super {
    /// Blocks as users are charged for them.
    pub fn counted_blocks(&self) -> u64 {
        self.used_blocks.saturating_add(self.inline_blocks)
    }

    /// What the metadata may take, in units of one inode.
    pub fn records(&self) -> u64 {
        let extents = self.extents.div_ceil(EXTENTS_PER_RECORD);
        self.used_inodes
            .saturating_add(self.extra)
            .saturating_add(extents)
    }

    /// What all of it may take on a disk, in blocks.
    pub fn taken(&self) -> u64 {
        self.used_blocks.saturating_add(self.records())
    }

    /// May this many blocks be taken?  Giving back and overwriting always may.
    pub(super) fn check_blocks(&self, blocks: u64) -> Result<(), FsError> {
        let room = self.room.map_or(u64::MAX, |r| r.bytes / BLOCK);
        if blocks > 0 && self.taken().saturating_add(blocks) > room {
            return Err(FsError::NoSpace);
        }
        Ok(())
    }

    /// May this many inodes, further names or units of long values be made?
    pub(super) fn check_records(&self, more: u64) -> Result<(), FsError> {
        let room = self.room.map_or(u64::MAX, |r| r.inodes);
        if more > 0 && self.records().saturating_add(more) > room {
            return Err(FsError::NoSpace);
        }
        Ok(())
    }

    /// May this many extents be made?
    pub(super) fn check_extents(&self, more: u64) -> Result<(), FsError> {
        let records = |extents: u64| extents.div_ceil(EXTENTS_PER_RECORD);
        let after = records(self.extents.saturating_add(more));
        self.check_records(after - records(self.extents))
    }
}

/// None before the tree has been made.
pub(super) fn find(v: &View<'_>) -> Result<Option<Super>, MetaError> {
    v.load(SUPER, "super")
}

pub fn load(v: &View<'_>) -> Result<Super, MetaError> {
    find(v)?.ok_or(MetaError::Corrupt("super"))
}

pub(super) fn save(tx: &mut Writer<'_>, sup: &Super) -> Result<(), MetaError> {
    tx.save(SUPER, sup, "super")
}

/// Whether little room is left for the whole tree.
pub fn is_short(v: &View<'_>) -> Result<bool, MetaError> {
    let Some(sup) = find(v)? else {
        return Ok(false);
    };
    let room = sup.room.is_some_and(|room| {
        let bytes = room.bytes.saturating_sub(sup.taken().saturating_mul(BLOCK));
        let records = room.inodes.saturating_sub(sup.records());
        bytes < SHORT || records < SHORT_RECORDS
    });
    Ok(room || sup.limit.is_short(sup.counted_blocks()))
}

/// No live peer needs the log up to and including this index.
pub fn floor(v: &View<'_>) -> Result<u64, MetaError> {
    Ok(load(v)?.floor)
}

/// The room of the tree, or less where a limit says so: that of the whole,
/// and that of the tree in which a directory lies.
pub fn statfs(v: &View<'_>, dir: InodeNo) -> Result<Statfs, MetaError> {
    let sup = load(v)?;
    let (bytes_free, inodes_free) = match sup.room {
        Some(room) => (
            room.bytes.saturating_sub(sup.taken().saturating_mul(BLOCK)),
            room.inodes.saturating_sub(sup.records()),
        ),
        None => (UNKNOWN_BYTES, UNKNOWN_INODES),
    };
    let used = sup.counted_blocks().saturating_mul(BLOCK);
    let mut statfs = Statfs {
        bytes: used.saturating_add(bytes_free),
        bytes_free,
        inodes: sup.used_inodes.saturating_add(inodes_free),
        inodes_free,
    };
    let limit = sup.limit;
    limit.narrow(&mut statfs, sup.counted_blocks(), sup.used_inodes);
    if let Some(inode) = inode::get(v, dir)? {
        if let Some(quota) = quota::of(v, &inode)? {
            let limit = quota.limit;
            limit.narrow(&mut statfs, quota.used_blocks, quota.used_inodes);
        }
    }
    Ok(statfs)
}

/// Has this voter said what it can hold?
pub fn has_reported(v: &View<'_>, node: NodeId) -> Result<bool, MetaError> {
    let capacity: Option<Capacity> = v.load(&key(CAPACITY, node.0), "capacity")?;
    Ok(capacity.is_some())
}

/// Takes down what a voter can hold, and answers the least of all.
pub(super) fn report(
    tx: &mut Writer<'_>,
    node: NodeId,
    capacity: Capacity,
) -> Result<Option<Capacity>, MetaError> {
    tx.save(&key(CAPACITY, node.0), &capacity, "capacity")?;
    let mut least: Option<Capacity> = None;
    for item in tx.range(&[], &[CAPACITY])? {
        let (_, value) = item?;
        let c: Capacity = crate::store::meta::decode(value, "capacity")?;
        least = Some(match least {
            None => c,
            Some(l) => Capacity {
                bytes: l.bytes.min(c.bytes),
                inodes: l.inodes.min(c.inodes),
            },
        });
    }
    Ok(least)
}

/// Which blocks of an extent are there.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Bitmap([u64; 4]);

impl Bitmap {
    fn decode(value: &[u8]) -> Result<Bitmap, MetaError> {
        if value.len() != 32 {
            return Err(MetaError::Corrupt("extent"));
        }
        let mut words = [0; 4];
        for (word, at) in words.iter_mut().zip([0, 8, 16, 24]) {
            *word = number(value, at)?;
        }
        Ok(Bitmap(words))
    }

    fn encode(self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    fn count(self) -> u64 {
        self.0.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The lowest block that is there.
    fn first(self) -> Option<u64> {
        let words = self.0.iter().zip([0, 64, 128, 192]);
        let mut set = words.filter(|(word, _)| **word != 0);
        set.next()
            .map(|(word, base)| base + u64::from(word.trailing_zeros()))
    }

    /// The words of a run of blocks, each a mask.
    fn run(blocks: Range<u64>) -> Bitmap {
        let mut words = [0; 4];
        for (word, first) in words.iter_mut().zip([0, 64, 128, 192]) {
            let from = blocks.start.clamp(first, first + 64) - first;
            let to = blocks.end.clamp(first, first + 64) - first;
            let below = |n: u64| if n == 64 { u64::MAX } else { (1 << n) - 1 };
            *word = below(to) & !below(from);
        }
        Bitmap(words)
    }

    fn or(self, other: Bitmap) -> Bitmap {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        Bitmap([a | e, b | f, c | g, d | h])
    }

    fn without(self, other: Bitmap) -> Bitmap {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        Bitmap([a & !e, b & !f, c & !g, d & !h])
    }
}

/// Blocks that a write will take, found before anything is changed.
pub(super) struct Plan {
    ino: InodeNo,
    bitmaps: BTreeMap<u64, Bitmap>,
    /// Those that are not there yet.
    pub blocks: u64,
    /// Extents of which nothing was there yet.
    pub extents: u64,
}

impl Plan {
    pub fn new(ino: InodeNo) -> Plan {
        Plan {
            ino,
            bitmaps: BTreeMap::new(),
            blocks: 0,
            extents: 0,
        }
    }

    /// The bytes of this range need blocks.
    pub fn add(&mut self, v: &View<'_>, bytes: Range<u64>) -> Result<(), MetaError> {
        let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        if bytes.is_empty() {
            return Ok(());
        }
        for extent in blocks.start / BITS..blocks.end.div_ceil(BITS) {
            let base = extent * BITS;
            let old = match self.bitmaps.get(&extent) {
                Some(planned) => *planned,
                None => bitmap(v, self.ino, extent)?,
            };
            let from = blocks.start.max(base) - base;
            let to = (blocks.end - base).min(BITS);
            let new = old.or(Bitmap::run(from..to));
            if new != old {
                self.blocks += new.count() - old.count();
                self.extents += u64::from(old == Bitmap::default());
                self.bitmaps.insert(extent, new);
            }
        }
        Ok(())
    }

    pub fn save(&self, tx: &mut Writer<'_>) {
        for (extent, bitmap) in &self.bitmaps {
            tx.put(&key2(EXTENT, self.ino.0, *extent), bitmap.encode());
        }
    }
}

fn bitmap(v: &View<'_>, ino: InodeNo, extent: u64) -> Result<Bitmap, MetaError> {
    match v.get(&key2(EXTENT, ino.0, extent))? {
        Some(value) => Bitmap::decode(value),
        None => Ok(Bitmap::default()),
    }
}

/// How much a file has given back.
#[derive(Default)]
pub(super) struct Freed {
    pub blocks: u64,
    pub extents: u64,
}

/// Gives back all blocks that lie whole at or beyond this size.
pub(super) fn cut(tx: &mut Writer<'_>, ino: InodeNo, size: u64) -> Result<Freed, MetaError> {
    free(tx, ino, size.div_ceil(BLOCK)..u64::MAX)
}

/// Gives back those of these blocks that are there.
pub(super) fn free(
    tx: &mut Writer<'_>,
    ino: InodeNo,
    blocks: Range<u64>,
) -> Result<Freed, MetaError> {
    let mut touched = Vec::new();
    let from = key2(EXTENT, ino.0, blocks.start / BITS);
    for item in tx.range(&from, &key(EXTENT, ino.0))? {
        let (key, value) = item?;
        let extent = number(key, 9)?;
        if extent >= blocks.end.div_ceil(BITS) {
            break;
        }
        touched.push((extent, Bitmap::decode(value)?));
    }
    let mut freed = Freed::default();
    for (extent, old) in touched {
        let base = extent * BITS;
        let from = blocks.start.saturating_sub(base).min(BITS);
        let to = blocks.end.saturating_sub(base).min(BITS);
        let new = old.without(Bitmap::run(from..to.max(from)));
        freed.blocks += old.count() - new.count();
        let key = key2(EXTENT, ino.0, extent);
        if new == Bitmap::default() {
            tx.delete(&key)?;
            freed.extents += 1;
        } else if new != old {
            tx.put(&key, new.encode());
        }
    }
    Ok(freed)
}

/// What a search has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// This block.
    Block(u64),
    /// Nothing up to here; the search was broken off.
    Unto(u64),
    /// There is none.
    Nothing,
}

/// Finds the first block from `from` on that is there, looking at no more
/// than `extents` of those that are stored.
pub fn find_data(
    v: &View<'_>,
    ino: InodeNo,
    from: u64,
    extents: usize,
) -> Result<Found, MetaError> {
    let start = key2(EXTENT, ino.0, from / BITS);
    let mut next = from;
    for (n, item) in v.range(&start, &key(EXTENT, ino.0))?.enumerate() {
        if n == extents {
            return Ok(Found::Unto(next));
        }
        let (key, value) = item?;
        let base = number(key, 9)?.saturating_mul(BITS);
        let after = from.saturating_sub(base).min(BITS);
        let rest = Bitmap::decode(value)?.without(Bitmap::run(0..after));
        if let Some(bit) = rest.first() {
            return Ok(Found::Block(base.saturating_add(bit)));
        }
        next = base.saturating_add(BITS);
    }
    Ok(Found::Nothing)
}

/// The same for the first block that is not there, which there always is.
pub fn find_hole(
    v: &View<'_>,
    ino: InodeNo,
    from: u64,
    extents: usize,
) -> Result<Found, MetaError> {
    let start = key2(EXTENT, ino.0, from / BITS);
    let mut next = from;
    for (n, item) in v.range(&start, &key(EXTENT, ino.0))?.enumerate() {
        if n == extents {
            return Ok(Found::Unto(next));
        }
        let (key, value) = item?;
        let base = number(key, 9)?.saturating_mul(BITS);
        if base > next {
            break;
        }
        let missing = Bitmap::run(next - base..BITS).without(Bitmap::decode(value)?);
        if let Some(bit) = missing.first() {
            return Ok(Found::Block(base.saturating_add(bit)));
        }
        next = base.saturating_add(BITS);
    }
    Ok(Found::Block(next))
}

/// The blocks that a file has, counted.
pub fn count(v: &View<'_>, ino: InodeNo) -> Result<u64, MetaError> {
    let mut blocks = 0;
    for item in v.range(&[], &key(EXTENT, ino.0))? {
        blocks += Bitmap::decode(item?.1)?.count();
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        for (from, to) in [(0, 0), (0, 1), (63, 65), (0, 256), (255, 256), (10, 200)] {
            let run = Bitmap::run(from..to);
            assert_eq!(run.count(), to - from);
            let bits = run.0.iter().enumerate();
            let set: Vec<u64> = bits
                .flat_map(|(i, w)| {
                    (0..64)
                        .filter(move |b| w >> b & 1 == 1)
                        .map(move |b| i as u64 * 64 + b)
                })
                .collect();
            assert_eq!(set, (from..to).collect::<Vec<_>>());
            assert!(Bitmap::decode(&run.encode()).is_ok_and(|b| b == run));
        }
        assert!(Bitmap::decode(&[0; 31]).is_err());
    }
}
