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

//! Times of access, as far as the kernel lets us see what is read.  fused
//! only.  A read is told to raftd when, by the last attributes that are known,
//! it is the first since a change or for a day; then no more until there are
//! newer ones.

#![forbid(unsafe_code)]

use super::{Ops, State};
use common::conf::Mount;
use common::fs::{Cred, InodeNo, ReqId};
use common::msg::{FsOp, FusedToRaftd};

impl State {
    fn notes_access(&self, mount: &Mount) -> bool {
        !mount.noatime && !mount.read_only && self.quorum
    }

    /// Whether raftd must hear of a read now.
    pub(super) fn take_access(&mut self, mount: &Mount, ino: InodeNo) -> bool {
        let inode = match self.notes_access(mount) {
            true => self.inodes.get(ino),
            false => None,
        };
        inode.is_some_and(|inode| inode.take_access())
    }

    /// Whether what is read through a handle that is opened now must come by
    /// here: the kernel would answer from its pages, of what was written on
    /// this node all, and nobody would know that it was read.
    pub(super) fn must_see_access(&mut self, mount: &Mount, ino: InodeNo, flags: i32) -> bool {
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        let inode = match reads && self.notes_access(mount) {
            true => self.inodes.get(ino),
            false => None,
        };
        inode.is_some_and(|inode| inode.is_access_due())
    }

    /// Somebody has changed the inode, perhaps its time of access.
    pub(super) fn forget_access(&mut self, ino: InodeNo) {
        if let Some(inode) = self.inodes.get(ino) {
            inode.forget_access();
        }
    }
}

impl Ops {
    /// Nobody waits for an answer, and there is none.
    pub(super) fn accessed(&self, ino: InodeNo) {
        self.control.send(&FusedToRaftd::Req {
            id: ReqId(0),
            cred: Cred::default(),
            op: FsOp::Accessed { ino },
        });
    }
}
