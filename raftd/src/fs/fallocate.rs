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

//! fallocate(2): room that is taken before it is written to, holes and zeros.
//! Runs in raftd, pure; the bytes of backing files follow, as the effects say.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::contents::check_file;
use super::inode::{self, Contents, Inode, ReadError};
use super::space::{self, Plan};
use super::{DataOp, Reply};
use crate::store::meta::MetaError;
use common::fs::{Fallocate, FallocateHow, FsError, InodeNo, BLOCK, FILE_MAX, INLINE_MAX};
use std::ops::Range;

impl Apply<'_, '_> {
    pub(super) fn fallocate(&mut self, ino: InodeNo, what: &Fallocate) -> Result<Reply, ReadError> {
        let mut inode = inode::load(self.tx, ino)?;
        check_file(&inode)?;
        if what.len == 0 || (what.how == FallocateHow::Punch && !what.keep_size) {
            return Err(FsError::Invalid.into());
        }
        let end = what.offset.checked_add(what.len);
        let end = end.filter(|e| *e <= FILE_MAX).ok_or(FsError::TooBig)?;
        let bytes = what.offset..end;
        let old = inode.size();
        let size = if what.keep_size { old } else { old.max(end) };
        let punch = what.how == FallocateHow::Punch;
        match &inode.contents {
            Contents::Inline(_) if punch || end <= INLINE_MAX as u64 => {
                let contents = self.resize_inline(&mut inode, size as usize)?;
                if what.how != FallocateHow::Reserve {
                    zero_inline(contents, &bytes);
                }
            }
            _ if punch => self.punch(ino, &mut inode, &bytes)?,
            _ => self.reserve(ino, &mut inode, what.how, &bytes, size)?,
        }
        // From where on the bytes are others than before.
        let changed = match what.how {
            FallocateHow::Reserve => (size != old).then_some(old),
            FallocateHow::Punch | FallocateHow::Zero => Some(what.offset.min(old)),
        };
        match changed {
            Some(_) => inode.touch(self.time),
            None => inode.ctime = self.time,
        }
        if what.kill_priv {
            self.kill_priv(ino, &mut inode)?;
        }
        inode::put(self.tx, ino, &inode)?;
        self.changed(ino, changed);
        Ok(Reply::Attr(inode.attr(ino)))
    }

    /// Zeros, and gives back the blocks that lie whole in the range; the last
    /// one does if nothing of the file is behind the range.
    fn punch(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        bytes: &Range<u64>,
    ) -> Result<(), ReadError> {
        let Contents::Backing { size, blocks } = &mut inode.contents else {
            return Err(MetaError::Corrupt("inode").into());
        };
        let last = match bytes.end >= *size {
            true => bytes.end.div_ceil(BLOCK),
            false => bytes.end / BLOCK,
        };
        let freed = space::free(self.tx, ino, bytes.start.div_ceil(BLOCK)..last)?;
        let left = blocks.checked_sub(freed.blocks);
        *blocks = left.ok_or(MetaError::Corrupt("inode"))?;
        self.give_back(inode.tree, &freed)?;
        self.zero(ino, bytes.start..bytes.end.max(last * BLOCK));
        Ok(())
    }

    /// Takes the blocks of the range, with zeros in them if that is asked for.
    fn reserve(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        how: FallocateHow,
        bytes: &Range<u64>,
        new: u64,
    ) -> Result<(), ReadError> {
        let mut plan = Plan::new(ino);
        if let Contents::Inline(contents) = &inode.contents {
            plan.add(self.tx, 0..contents.len() as u64)?;
        }
        // Not even planned, if there cannot be so much.
        let all = bytes.end.div_ceil(BLOCK) - bytes.start / BLOCK;
        let least = all.saturating_sub(inode.contents_blocks());
        self.sup.check_blocks(least)?;
        self.check_quota(inode.tree, least, 0)?;
        plan.add(self.tx, bytes.clone())?;
        self.take(ino, inode, &plan)?;
        if how == FallocateHow::Zero {
            self.zero(ino, bytes.clone());
        }
        if let Contents::Backing { size, blocks } = &mut inode.contents {
            self.effects.data.push(DataOp::Reserve {
                ino,
                offset: bytes.start,
                len: bytes.end - bytes.start,
                blocks: *blocks,
            });
            if new > *size {
                *size = new;
                self.effects.data.push(DataOp::Truncate { ino, size: new });
            }
        }
        Ok(())
    }

    fn zero(&mut self, ino: InodeNo, bytes: Range<u64>) {
        self.effects.data.push(DataOp::Zero {
            ino,
            offset: bytes.start,
            len: bytes.end - bytes.start,
        });
    }
}

fn zero_inline(contents: &mut [u8], bytes: &Range<u64>) {
    let len = contents.len() as u64;
    let place = bytes.start.min(len) as usize..bytes.end.min(len) as usize;
    if let Some(place) = contents.get_mut(place) {
        place.fill(0);
    }
}
