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

//! FALLOCATE and LSEEK: room taken, holes made and holes found.  fused only.
//!
//! A FALLOCATE is a change under way like a SETATTR of the size: reads of what
//! it touches wait for it.  The kernel drops its own pages of a range of zeros
//! when it has the answer.

#![forbid(unsafe_code)]

use super::{attr_of, errno, errno_to, unexpected, Answer, Ops, Reply, Then, Wake};
use crate::lock;
use common::fs::{Cred, Fallocate, FallocateHow, Fh, InodeNo, FILE_MAX, RESERVE_MAX};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use nix::errno::Errno;

/// As the protocol has them, on all systems.
const FALLOC_KEEP_SIZE: i32 = 0x01;
const FALLOC_PUNCH_HOLE: i32 = 0x02;
const FALLOC_ZERO_RANGE: i32 = 0x10;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// What the mode of fallocate(2) means; a hole beyond the end is none.
fn how(mode: i32) -> Option<(FallocateHow, bool)> {
    let keep_size = mode & FALLOC_KEEP_SIZE != 0;
    let how = match mode & !FALLOC_KEEP_SIZE {
        0 => FallocateHow::Reserve,
        FALLOC_PUNCH_HOLE if keep_size => FallocateHow::Punch,
        FALLOC_ZERO_RANGE => FallocateHow::Zero,
        _ => return None,
    };
    Some((how, keep_size))
}

/// The range of bytes, if a file can have them.
fn checked(mode: i32, offset: u64, len: u64, cred: Cred) -> Result<Fallocate, Errno> {
    let (how, keep_size) = how(mode).ok_or(Errno::EOPNOTSUPP)?;
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let end = offset.checked_add(len);
    if end.is_none_or(|end| end > FILE_MAX) {
        return Err(Errno::EFBIG);
    }
    Ok(Fallocate {
        how,
        offset,
        len,
        keep_size,
        kill_priv: cred.uid != 0,
    })
}

impl Ops {
    #[allow(clippy::too_many_arguments)]
    pub fn fallocate(
        &self,
        cred: Cred,
        ino: InodeNo,
        fh: Fh,
        offset: u64,
        len: u64,
        mode: i32,
        reply: Reply<()>,
    ) {
        match checked(mode, offset, len, cred) {
            Ok(what) if what.how != FallocateHow::Punch && what.len > RESERVE_MAX => {
                self.allocate_pieces(cred, ino, fh, what, reply);
            }
            Ok(what) => self.allocate(cred, ino, fh, what, reply),
            Err(e) => reply(Err(e)),
        }
    }

    /// What cannot fit is not begun.
    fn allocate_pieces(&self, cred: Cred, ino: InodeNo, fh: Fh, what: Fallocate, reply: Reply<()>) {
        self.ask(cred, FsOp::Getattr { ino }, move |ops, answer| {
            let has = match answer.result {
                Ok(rep) => attr_of(rep).blocks.saturating_mul(512),
                Err(e) => return reply(Err(errno(e))),
            };
            ops.ask(cred, FsOp::Statfs, move |ops, answer| match answer.result {
                Ok(FsRep::Statfs(st)) if what.len.saturating_sub(has) > st.bytes_free => {
                    reply(Err(Errno::ENOSPC));
                }
                Ok(FsRep::Statfs(_)) => ops.allocate(cred, ino, fh, what, reply),
                Ok(_) => unexpected(),
                Err(e) => reply(Err(errno(e))),
            });
        });
    }

    /// A long range is reserved piece by piece; an error leaves what was before.
    fn allocate(&self, cred: Cred, ino: InodeNo, fh: Fh, mut what: Fallocate, reply: Reply<()>) {
        let (offset, mut rest) = (what.offset, None);
        if what.how != FallocateHow::Punch && what.len > RESERVE_MAX {
            rest = Some(Fallocate {
                offset: offset + RESERVE_MAX,
                len: what.len - RESERVE_MAX,
                ..what
            });
            what.len = RESERVE_MAX;
        }
        let op = FsOp::Fallocate { ino, what };
        let mut state = lock(&self.state);
        if state.handles.is_lost(fh) {
            drop(state);
            return reply(Err(Errno::EIO));
        }
        if let Some(e) = state.refuse(&self.mount, &op) {
            drop(state);
            return reply(Err(errno(e)));
        }
        // When it has the answer the kernel knows of a file so long.
        let end = match what.keep_size {
            true => 0,
            false => what.offset + what.len,
        };
        let then = Then::Answer(Box::new(move |ops, answer| {
            let reply: Reply<()> = match rest {
                None => reply,
                Some(rest) => {
                    // Sent when this one is over.
                    return ops.allocated_piece(cred, (ino, fh), rest, answer, reply);
                }
            };
            ops.allocated(ino, fh, end, answer, reply);
        }));
        let id = self.register(&mut state, self.deadline(), &op, then);
        let inode = state.inodes.get_or_new(ino);
        inode.clear(true);
        // Up to the end of all, since the end of the file may move.
        inode.busy().pending.begin(id, offset..u64::MAX);
        let lane = self.lane_of(&state, ino);
        drop(state);
        lane.send(&FusedToRaftd::Req { id, cred, op });
    }

    fn allocated_piece(
        &self,
        cred: Cred,
        (ino, fh): (InodeNo, Fh),
        rest: Fallocate,
        answer: Answer<'_>,
        reply: Reply<()>,
    ) {
        match answer.result {
            Ok(_) => {
                self.allocated(ino, fh, 0, answer, Box::new(|_| ()));
                self.allocate(cred, ino, fh, rest, reply);
            }
            Err(_) => self.allocated(ino, fh, 0, answer, reply),
        }
    }

    /// A FALLOCATE is applied, or never will be.
    fn allocated(&self, ino: InodeNo, fh: Fh, end: u64, answer: Answer<'_>, reply: Reply<()>) {
        let mut state = lock(&self.state);
        let mut ready = Vec::new();
        if let Some(busy) = state.inodes.if_busy(ino) {
            ready = busy.pending.end(answer.id);
        }
        let attr = match answer.result {
            Ok(FsRep::Attr(attr)) => attr,
            Ok(_) => unexpected(),
            Err(e) => {
                let reply = Some(errno_to(reply));
                return self.change_failed(state, ino, Some(fh), e, reply, ready);
            }
        };
        let inode = state.inodes.get_or_new(ino);
        inode.version = Some(attr.data_version);
        let killed = inode.note(&attr, answer.index);
        inode.grow(end);
        state.inodes.tidy(ino);
        state.changed(ino, Some(&attr), answer.index);
        drop(state);
        ready.into_iter().for_each(|wake| wake(self));
        if killed {
            self.stale_inode(ino, None);
        }
        reply(Ok(()));
    }

    /// For whence SEEK_DATA and SEEK_HOLE; the others the kernel knows itself.
    pub fn lseek(&self, cred: Cred, ino: InodeNo, offset: i64, whence: i32, reply: Reply<i64>) {
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply(Err(Errno::EINVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply(Err(Errno::ENXIO));
        };
        let op = FsOp::Seek { ino, offset, hole };
        let go: Wake = Box::new(move |ops| {
            ops.ask(cred, op, move |_, answer| match answer.result {
                Ok(FsRep::Offset(at)) => reply(i64::try_from(at).map_err(|_| Errno::EOVERFLOW)),
                Ok(_) => unexpected(),
                Err(e) => reply(Err(errno(e))),
            });
        });
        let mut state = lock(&self.state);
        let go = match state.inodes.if_busy(ino) {
            Some(busy) => busy.pending.wait(Some(offset..u64::MAX), go),
            None => Err(go),
        };
        drop(state);
        match go {
            Err(go) => go(self),
            Ok(()) => self.hurry(ino),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_ranges() {
        let root = Cred { uid: 0, gid: 0 };
        for (mode, offset, len, want) in [
            (0, 0, 0, Errno::EINVAL),
            (0, 1 << 63, 1, Errno::EFBIG),
            (0, u64::MAX, u64::MAX, Errno::EFBIG),
            (1, FILE_MAX, 1, Errno::EFBIG),
            (2, 0, 1, Errno::EOPNOTSUPP),
            (0x13, 0, 1, Errno::EOPNOTSUPP),
            (8, 0, 4096, Errno::EOPNOTSUPP),
            (0x20, 0, 4096, Errno::EOPNOTSUPP),
            (0x40, 0, 4096, Errno::EOPNOTSUPP),
            (-1, 0, 4096, Errno::EOPNOTSUPP),
        ] {
            assert_eq!(checked(mode, offset, len, root), Err(want), "{mode:#x}");
        }
        for (mode, how, keep_size) in [
            (0, FallocateHow::Reserve, false),
            (1, FallocateHow::Reserve, true),
            (3, FallocateHow::Punch, true),
            (0x10, FallocateHow::Zero, false),
            (0x11, FallocateHow::Zero, true),
        ] {
            let got = checked(mode, 1, FILE_MAX - 1, root).unwrap();
            assert_eq!((got.how, got.keep_size), (how, keep_size));
        }
    }
}
