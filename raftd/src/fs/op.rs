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

//! The replicated operations: what an entry of the raft log says.  They are
//! the wire and the log format; variants and fields are only ever appended.

use super::lock::Wish;
use crate::payload::Payload;
use common::fs::{Cred, Fallocate, InodeNo, NodeId, SessionId, SetAttr, Time, TreeNo};
use common::lock::LockRange;
use common::xattr::XattrHow;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// One entry of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Who proposed it, for the exactly-once table; None for entries that the
    /// leader makes on its own behalf.
    pub origin: Option<Origin>,
    /// The leader's clock when it took the proposal.
    pub time: Time,
    pub op: Op,
    /// The bytes of a WRITE or the value of a SETXATTR; they travel and rest beside the entry.
    pub payload: Payload,
}

/// Place of a proposal in its session's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub session: SessionId,
    /// From 1, without gaps.
    pub seq: u64,
    /// All replies up to and including this seq have reached the session.
    pub acked: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Holds the place of a seq whose operation was given up.
    Nop,
    /// A raftd has started: its older sessions end, a new one begins whose id
    /// is this entry's log index.
    OpenSession {
        node: NodeId,
        nonce: u64,
        /// For how long it has its locks without being heard of.
        lease: Duration,
    },
    /// What this voter's disk can hold for the tree.
    Capacity {
        node: NodeId,
        bytes: u64,
        inodes: u64,
    },
    /// No live peer needs the log up to and including this index.
    Floor {
        index: u64,
    },
    /// The session holds none of these orphans open any more.
    Release {
        inodes: Vec<InodeNo>,
    },
    Create {
        parent: InodeNo,
        name: Vec<u8>,
        /// Permissions and S_IFREG.
        mode: u32,
        /// Taken from the mode, unless the directory has a default ACL.
        umask: u32,
        excl: bool,
        cred: Cred,
    },
    Mknod {
        parent: InodeNo,
        name: Vec<u8>,
        /// Type and permissions.
        mode: u32,
        umask: u32,
        rdev: u32,
        cred: Cred,
    },
    Mkdir {
        parent: InodeNo,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        cred: Cred,
    },
    Symlink {
        parent: InodeNo,
        name: Vec<u8>,
        target: Vec<u8>,
        cred: Cred,
    },
    Link {
        ino: InodeNo,
        parent: InodeNo,
        name: Vec<u8>,
        cred: Cred,
    },
    Unlink {
        parent: InodeNo,
        name: Vec<u8>,
        check: Check,
    },
    Rmdir {
        parent: InodeNo,
        name: Vec<u8>,
        check: Check,
    },
    Rename {
        parent: InodeNo,
        name: Vec<u8>,
        new_parent: InodeNo,
        new_name: Vec<u8>,
        how: RenameHow,
        check: Check,
    },
    Setattr {
        ino: InodeNo,
        set: SetAttr,
        check: Check,
    },
    Write {
        ino: InodeNo,
        at: WriteAt,
        /// Drop set-id bits, as SetAttr::kill_priv.
        kill_priv: bool,
    },
    /// The payload is the value.
    SetXattr {
        ino: InodeNo,
        name: Vec<u8>,
        how: XattrHow,
        cred: Cred,
        check: Check,
    },
    RemoveXattr {
        ino: InodeNo,
        name: Vec<u8>,
        check: Check,
    },
    /// Limits of a directory tree, or of the whole for the root; None stays as
    /// it is, 0 is no limit.
    SetQuota {
        ino: InodeNo,
        bytes: Option<u64>,
        inodes: Option<u64>,
    },
    DropQuota {
        ino: InodeNo,
    },
    /// So many more entries of what was there before the quota are to be
    /// counted.
    Adopt {
        tree: TreeNo,
        max: u32,
    },
    Fallocate {
        ino: InodeNo,
        what: Fallocate,
    },
    /// Inodes that were read, each with its ctime as it was then.
    Accessed {
        inodes: Vec<(InodeNo, Time)>,
    },
    /// Locks bytes for an owner of the session's mount, or queues for them.
    Lock {
        ino: InodeNo,
        mount: u64,
        wish: Wish,
        wait: bool,
    },
    Unlock {
        ino: InodeNo,
        mount: u64,
        owner: u64,
        range: LockRange,
    },
    /// All that the mount holds and waits for.
    UnlockMount {
        mount: u64,
    },
    /// Whoever waits with that ticket shall not.
    CancelLock {
        ino: InodeNo,
        ticket: u64,
    },
    /// The session's lease has run out.  The leader's alone.
    ExpireLocks {
        session: SessionId,
    },
    /// The session knows that it has lost its locks, and has none.
    ResetLocks,
}

/// Who has judged ownership and the sticky bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// The kernel has, before it asked.
    Kernel,
    /// It has, for this user and by this owner, which may be an old one.
    Owner { uid: u32, owner: u32 },
    /// Apply must, for this caller.
    Apply(Cred),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameHow {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    Offset(u64),
    /// At the end as it is when the entry is applied.
    End,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Some(o) => write!(f, "{}.{} {:?}", o.session, o.seq, self.op),
            None => write!(f, "{:?}", self.op),
        }
    }
}
