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

//! Extended attributes.  fused only.
//!
//! Linux asks for one before the first write to a file, for capabilities to
//! drop, and for two before it lets anybody but the owner at one, for ACLs.
//! Most have none: then the newest attributes say so, and nobody is asked.

#![forbid(unsafe_code)]

use super::{errno, unexpected, Caller, DataReply, Ops, Reply, State, Then};
use crate::lock;
use common::fs::{Attr, Cred, FsError, InodeNo};
use common::msg::{FsOp, FsRep, FusedToRaftd};
use common::xattr::{namespace, Namespace, XattrHow, XATTR_SIZE_MAX};
use nix::errno::Errno;

const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

fn how(flags: i32) -> Option<XattrHow> {
    match flags {
        0 => Some(XattrHow::Any),
        XATTR_CREATE => Some(XattrHow::Create),
        XATTR_REPLACE => Some(XattrHow::Replace),
        _ => None,
    }
}

/// As much as the caller has room for; 0 asks how much that must be.
fn fit(data: &[u8], size: u32) -> Result<&[u8], Errno> {
    match size == 0 || data.len() <= size as usize {
        true => Ok(data),
        false => Err(errno(FsError::Range)),
    }
}

/// Whether the names of attributes that only root sees are hidden.
fn shown(list: &[u8], cred: Cred) -> Vec<u8> {
    let names = list.split_inclusive(|&b| b == 0);
    let hidden = |name: &[u8]| {
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        cred.uid != 0 && namespace(name) == Ok(Namespace::Trusted)
    };
    names
        .filter(|name| !hidden(name))
        .flatten()
        .copied()
        .collect()
}

impl State {
    /// Whether there are any is not known any more.
    pub(super) fn forget_xattrs(&mut self, ino: InodeNo) {
        if let Some(inode) = self.inodes.get(ino) {
            inode.xattrs = None;
        }
    }

    /// This mount has set or removed one, with `index`.
    fn xattr_changed(&mut self, attr: &Attr, index: u64) -> bool {
        let stale = self.changes.inode_since(attr.ino, index);
        let killed = self.inodes.get(attr.ino).is_some_and(|inode| {
            inode.xattrs = (!stale && inode.is_newest(index)).then_some(attr.xattrs);
            inode.note(attr, index)
        });
        self.changed(attr.ino, Some(attr), index);
        killed
    }
}

impl Ops {
    /// Whether the newest attributes say that there are no extended ones; a
    /// strict mount has them asked for each time.
    fn has_none(&self, ino: InodeNo) -> bool {
        let mut state = lock(&self.state);
        let inode = state.inodes.get(ino);
        inode.is_some_and(|inode| inode.xattrs == Some(false)) && !self.mount.strict
    }

    pub fn getxattr(
        &self,
        Caller { cred, pid }: Caller,
        ino: InodeNo,
        name: &[u8],
        size: u32,
        reply: DataReply,
    ) {
        if let Err(e) = namespace(name) {
            return reply(Err(errno(e)));
        }
        if self.has_none(ino) {
            return reply(Err(errno(FsError::NoAttr)));
        }
        let name = name.to_vec();
        self.ask(
            cred,
            FsOp::Getxattr { ino, name },
            move |ops, answer| match answer.result {
                Ok(FsRep::Data { .. }) => reply(fit(answer.data, size)),
                Ok(_) => unexpected(),
                Err(e) => reply(Err(ops.errno_to_retry(pid, e))),
            },
        );
    }

    pub fn listxattr(
        &self,
        Caller { cred, pid }: Caller,
        ino: InodeNo,
        size: u32,
        reply: DataReply,
    ) {
        if self.has_none(ino) {
            return reply(Ok(&[]));
        }
        self.ask(
            cred,
            FsOp::Listxattr { ino },
            move |ops, answer| match answer.result {
                Ok(FsRep::Data { .. }) => reply(fit(&shown(answer.data, cred), size)),
                Ok(_) => unexpected(),
                Err(e) => reply(Err(ops.errno_to_retry(pid, e))),
            },
        );
    }

    /// `flags` are those of setxattr(2); a position only other systems know.
    #[allow(clippy::too_many_arguments)]
    pub fn setxattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        name: &[u8],
        value: &[u8],
        flags: i32,
        position: u32,
        reply: Reply<()>,
    ) {
        let Some(how) = how(flags).filter(|_| position == 0) else {
            return reply(Err(Errno::EINVAL));
        };
        if value.len() > XATTR_SIZE_MAX {
            return reply(Err(errno(FsError::TooLong)));
        }
        let op = FsOp::Setxattr {
            ino,
            name: name.to_vec(),
            len: value.len() as u32,
            how,
            owner: lock(&self.state).owner(ino),
        };
        self.change_xattr(caller, op, value, reply);
    }

    pub fn removexattr(&self, caller: Caller, ino: InodeNo, name: &[u8], reply: Reply<()>) {
        let op = FsOp::Removexattr {
            ino,
            name: name.to_vec(),
            owner: lock(&self.state).owner(ino),
        };
        self.change_xattr(caller, op, &[], reply);
    }

    fn change_xattr(&self, Caller { cred, pid }: Caller, op: FsOp, value: &[u8], reply: Reply<()>) {
        let (ino, name) = match &op {
            FsOp::Setxattr { ino, name, .. } | FsOp::Removexattr { ino, name, .. } => (*ino, name),
            _ => return reply(Err(errno(FsError::Unsupported))),
        };
        if let Err(e) = namespace(name) {
            return reply(Err(errno(e)));
        }
        let mut state = lock(&self.state);
        if let Some(e) = state.refuse(&self.mount, &op) {
            drop(state);
            return reply(Err(errno(e)));
        }
        state.forget_xattrs(ino);
        let then = Then::Answer(Box::new(move |ops: &Ops, answer| match answer.result {
            Ok(FsRep::Attr(attr)) => {
                let killed = lock(&ops.state).xattr_changed(&attr, answer.index);
                if killed {
                    ops.stale_inode(attr.ino, None);
                }
                reply(Ok(()));
            }
            Ok(_) => unexpected(),
            Err(e) => reply(Err(ops.errno_to_retry(pid, e))),
        }));
        let id = self.register(&mut state, self.deadline(), &op, then);
        drop(state);
        self.control
            .send_with(&FusedToRaftd::Req { id, cred, op }, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_an_answer() {
        assert_eq!(fit(b"abc", 0), Ok(&b"abc"[..]));
        assert_eq!(fit(b"abc", 3), Ok(&b"abc"[..]));
        assert_eq!(fit(b"abc", 2), Err(Errno::ERANGE));
        assert_eq!(fit(b"", 0), Ok(&b""[..]));
    }

    #[test]
    fn only_root_sees_all() {
        let list = b"user.a\0trusted.b\0security.c\0";
        let cred = |uid| Cred { uid, gid: 0 };
        assert_eq!(shown(list, cred(0)), list);
        assert_eq!(shown(list, cred(1)), b"user.a\0security.c\0");
        assert_eq!(shown(b"trusted.b\0", cred(1)), b"");
        assert_eq!(shown(b"", cred(1)), b"");
    }

    #[test]
    fn flags() {
        assert_eq!(how(0), Some(XattrHow::Any));
        assert_eq!(how(1), Some(XattrHow::Create));
        assert_eq!(how(2), Some(XattrHow::Replace));
        for other in [3, 4, -1, i32::MAX] {
            assert_eq!(how(other), None);
        }
    }
}
