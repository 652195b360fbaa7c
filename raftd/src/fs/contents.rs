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

//! Contents: write, truncate, and the one-way move from the inode record to a
//! backing file.  Runs in raftd, pure; the bytes of backing files are moved
//! afterwards, as the effects say.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::inode::{self, is_regular, Contents, Inode, ReadError};
use super::op::WriteAt;
use super::space::{self, Freed, Plan};
use super::{Change, DataOp, Reply};
use crate::payload::Payload;
use crate::store::meta::MetaError;
use common::fs::{FsError, InodeNo, TreeNo, FILE_MAX, INLINE_MAX};

/// Only regular files have bytes to write or cut.
pub(super) fn check_file(inode: &Inode) -> Result<(), FsError> {
    if inode.is_dir() {
        return Err(FsError::IsDir);
    }
    if !is_regular(inode.mode) {
        return Err(FsError::Invalid);
    }
    Ok(())
}

impl Apply<'_, '_> {
    pub(super) fn write(
        &mut self,
        ino: InodeNo,
        at: WriteAt,
        kill_priv: bool,
        payload: &Payload,
    ) -> Result<Reply, ReadError> {
        let mut inode = inode::load(self.tx, ino)?;
        check_file(&inode)?;
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => inode.size(),
        };
        let end = offset.checked_add(u64::from(payload.len));
        let end = end.filter(|e| *e <= FILE_MAX).ok_or(FsError::TooBig)?;
        if payload.len > 0 {
            match &inode.contents {
                Contents::Inline(bytes) if end <= INLINE_MAX as u64 => {
                    let size = bytes.len().max(end as usize);
                    let bytes = self.resize_inline(&mut inode, size)?;
                    write_inline(bytes, offset as usize, payload)?;
                }
                _ => self.write_backing(ino, &mut inode, offset, end)?,
            }
            if kill_priv {
                self.kill_priv(ino, &mut inode)?;
            } else if at == WriteAt::End {
                // Of any other write the kernel thinks itself.
                self.drop_capability(ino, &mut inode)?;
            }
            inode.touch(self.time);
            inode::put(self.tx, ino, &inode)?;
            self.changed(ino, Some(offset));
        }
        let attr = inode.attr(ino);
        Ok(Reply::Written { offset, attr })
    }

    fn write_backing(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        offset: u64,
        end: u64,
    ) -> Result<(), ReadError> {
        let mut plan = Plan::new(ino);
        if let Contents::Inline(bytes) = &inode.contents {
            plan.add(self.tx, 0..bytes.len() as u64)?;
        }
        plan.add(self.tx, offset..end)?;
        self.take(ino, inode, &plan)?;
        if let Contents::Backing { size, .. } = &mut inode.contents {
            *size = end.max(*size);
        }
        self.effects.data.push(DataOp::Write { ino, offset });
        Ok(())
    }

    /// Gives the file a new size.  Answers the offset from where its bytes
    /// have changed, if they have.
    pub(super) fn resize(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        size: u64,
    ) -> Result<Option<u64>, ReadError> {
        check_file(inode)?;
        if size > FILE_MAX {
            return Err(FsError::TooBig.into());
        }
        let old = inode.size();
        if size == old {
            return Ok(None);
        }
        match &inode.contents {
            Contents::Inline(_) if size <= INLINE_MAX as u64 => {
                self.resize_inline(inode, size as usize)?;
            }
            _ => self.resize_backing(ino, inode, size)?,
        }
        inode.data_version += 1;
        Ok(Some(size.min(old)))
    }

    /// The bytes of a small file that has this size then.
    pub(super) fn resize_inline<'i>(
        &mut self,
        inode: &'i mut Inode,
        size: usize,
    ) -> Result<&'i mut Vec<u8>, ReadError> {
        let (old, new) = (inode.contents_blocks(), u64::from(size > 0));
        self.check_quota(inode.tree, new.saturating_sub(old), 0)?;
        self.charge(inode.tree, new as i64 - old as i64, 0)?;
        self.sup.inline_blocks = (self.sup.inline_blocks + new)
            .checked_sub(old)
            .ok_or(MetaError::Corrupt("super"))?;
        match &mut inode.contents {
            Contents::Inline(bytes) => {
                bytes.resize(size, 0);
                Ok(bytes)
            }
            _ => Err(MetaError::Corrupt("inode").into()),
        }
    }

    fn resize_backing(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        new: u64,
    ) -> Result<(), ReadError> {
        let mut plan = Plan::new(ino);
        if let Contents::Inline(bytes) = &inode.contents {
            plan.add(self.tx, 0..bytes.len() as u64)?;
        }
        self.take(ino, inode, &plan)?;
        if let Contents::Backing { size, blocks } = &mut inode.contents {
            if new < *size {
                let freed = space::cut(self.tx, ino, new)?;
                *blocks = blocks
                    .checked_sub(freed.blocks)
                    .ok_or(MetaError::Corrupt("inode"))?;
                self.give_back(inode.tree, &freed)?;
            }
            *size = new;
        }
        self.effects.data.push(DataOp::Truncate { ino, size: new });
        Ok(())
    }

    /// Takes the planned blocks, or refuses before anything has changed; what
    /// is inline moves out.
    pub(super) fn take(
        &mut self,
        ino: InodeNo,
        inode: &mut Inode,
        plan: &Plan,
    ) -> Result<(), ReadError> {
        // The block of a small file is in the plan, and charged already.
        let spills = matches!(inode.contents, Contents::Inline(_));
        let inline = match spills {
            true => inode.contents_blocks(),
            false => 0,
        };
        let more = plan.blocks.saturating_sub(inline);
        self.check_quota(inode.tree, more, 0)?;
        self.sup.check_blocks(plan.blocks)?;
        // The inode's own record has had room for what is moved out.
        let extents = plan.extents.saturating_sub(u64::from(spills));
        self.sup.check_extents(extents)?;
        self.charge(inode.tree, more as i64, 0)?;
        self.sup.used_blocks += plan.blocks;
        self.sup.extents += plan.extents;
        self.free_inline(inline)?;
        plan.save(self.tx);
        match &mut inode.contents {
            Contents::Inline(bytes) => {
                let contents = std::mem::take(bytes);
                inode.contents = Contents::Backing {
                    size: contents.len() as u64,
                    blocks: plan.blocks,
                };
                self.effects.data.push(DataOp::Spill { ino, contents });
                self.effects.changes.push(Change::Spilled { ino });
            }
            Contents::Backing { blocks, .. } => *blocks += plan.blocks,
            _ => return Err(MetaError::Corrupt("inode").into()),
        }
        Ok(())
    }

    pub(super) fn give_back(&mut self, tree: TreeNo, freed: &Freed) -> Result<(), MetaError> {
        let blocks = self.sup.used_blocks.checked_sub(freed.blocks);
        self.sup.used_blocks = blocks.ok_or(MetaError::Corrupt("super"))?;
        let extents = self.sup.extents.checked_sub(freed.extents);
        self.sup.extents = extents.ok_or(MetaError::Corrupt("super"))?;
        self.charge(tree, -(freed.blocks as i64), 0)
    }

    pub(super) fn free_inline(&mut self, blocks: u64) -> Result<(), MetaError> {
        let left = self.sup.inline_blocks.checked_sub(blocks);
        self.sup.inline_blocks = left.ok_or(MetaError::Corrupt("super"))?;
        Ok(())
    }
}

fn write_inline(bytes: &mut [u8], offset: usize, payload: &Payload) -> Result<(), MetaError> {
    let new = payload.bytes()?;
    match bytes.get_mut(offset..offset + new.len()) {
        Some(place) => place.copy_from_slice(&new),
        None => return Err(MetaError::Corrupt("payload")),
    }
    Ok(())
}
