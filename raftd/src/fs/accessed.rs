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

//! The time of the last access, as with the mount option relatime of Linux:
//! it moves when it would else tell nothing, so that a file that is read again
//! and again costs an entry of the log a day.  Runs in raftd, pure.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::inode::{self, ReadError};
use super::Reply;
use common::fs::{atime_due, InodeNo, Time};

impl Apply<'_, '_> {
    /// Inodes that were read some time ago.  What has changed since then, by
    /// its ctime, is left alone: it could be the time of access that somebody
    /// has set.  The change of that time counts as none of the inode.
    pub(super) fn accessed(&mut self, inodes: &[(InodeNo, Time)]) -> Result<Reply, ReadError> {
        for (ino, ctime) in inodes {
            let Some(mut inode) = inode::get(self.tx, *ino)? else {
                continue;
            };
            let attr = inode.attr(*ino);
            if inode.ctime == *ctime && self.time.sec >= atime_due(&attr) {
                inode.atime = self.time;
                inode::put(self.tx, *ino, &inode)?;
                self.changed(*ino, None);
            }
        }
        Ok(Reply::Done)
    }
}
