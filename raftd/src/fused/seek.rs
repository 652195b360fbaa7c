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

//! Where the holes of a file are, from the blocks that the log has given it.
//! raftd only.

use super::request::fs_error;
use super::Fused;
use crate::fs::inode::{self, Contents, ReadError};
use crate::fs::space::{self, Found};
use common::fs::{FsError, InodeNo, BLOCK};
use common::msg::FsRep;

/// Extents that are looked at without letting apply go on in between.
const STEP: usize = 4096;

/// The size, and whether there are blocks: what is inline is all data.
fn shape(contents: &Contents) -> Result<(u64, bool), FsError> {
    match contents {
        Contents::Inline(bytes) => Ok((bytes.len() as u64, false)),
        Contents::Backing { size, .. } => Ok((*size, true)),
        Contents::Directory { .. } => Err(FsError::IsDir),
        _ => Err(FsError::Invalid),
    }
}

impl Fused {
    /// Nothing is found at or behind the end.
    pub(super) fn seek(&self, ino: InodeNo, offset: u64, hole: bool) -> Result<FsRep, FsError> {
        let ino = self.real(ino)?;
        let mut from = offset / BLOCK;
        loop {
            let (size, found) = self.search(ino, from, hole).map_err(fs_error)?;
            if offset >= size {
                return Err(FsError::NoOffset);
            }
            let at = match found {
                Found::Unto(block) if block.saturating_mul(BLOCK) < size => {
                    from = block;
                    continue;
                }
                Found::Block(block) => block.saturating_mul(BLOCK).max(offset),
                Found::Unto(_) | Found::Nothing => u64::MAX,
            };
            return match hole {
                true => Ok(FsRep::Offset(at.min(size))),
                false if at >= size => Err(FsError::NoOffset),
                false => Ok(FsRep::Offset(at)),
            };
        }
    }

    fn search(&self, ino: InodeNo, from: u64, hole: bool) -> Result<(u64, Found), ReadError> {
        let reader = self.mounts.store.meta().read();
        let (size, has_blocks) = shape(&inode::contents(&reader, ino)?)?;
        let found = match (has_blocks, hole) {
            (false, true) => Found::Nothing,
            (false, false) => Found::Block(from),
            (true, true) => space::find_hole(&reader, ino, from, STEP)?,
            (true, false) => space::find_data(&reader, ino, from, STEP)?,
        };
        Ok((size, found))
    }
}
