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

//! The messages between the processes: one enum per direction of each
//! channel, so that a process cannot spell what is not its to ask.  Shared by
//! all; pure data.  A change here is a change of IMSG_VERSION in imsg.rs.
//!
//! ```text
//!   dfsd --ParentToRaftd--> raftd     dfsd --ParentToFused--> fused
//!   dfsd <--RaftdToParent-- raftd     dfsd <--FusedToParent-- fused
//!
//!   fused --FusedToRaftd--> raftd     twice: a socket pair for requests and
//!   fused <--RaftdToFused-- raftd     one for bulk, so that a long WRITE or
//!                                     READ does not hold up a small request
//!
//!   dfsctl, mount_dfs --CtlReq--> raftd --CtlRep--> (ctl.rs)
//! ```

use crate::conf::{Conf, Mount, MountId, Peer};
use crate::ctl::{CtlAttach, CtlResult};
use crate::fs::{
    Attr, Cookie, Cred, Dirent, Fallocate, FsError, InodeNo, ReqId, SetAttr, Statfs, IO_MAX,
};
use crate::imsg::Message;
use crate::lock::{LockInfo, LockKind, LockRange};
use crate::xattr::XattrHow;
use serde::{Deserialize, Serialize};

/// Which of the two socket pairs between a fused and raftd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lane {
    /// Everything but what goes over Bulk, and small WRITEs.  raftd takes what
    /// comes over one lane in its order.
    Control,
    /// Large WRITEs with their bytes from fused, Data replies with theirs from
    /// raftd.
    Bulk,
}

/// Largest frame between parent and children.
pub const PARENT_FRAME_MAX: usize = 16384;
/// Largest frame on either lane: a full WRITE or READ and its header.
pub const FUSED_FRAME_MAX: usize = IO_MAX + 16384;
/// Socket buffers of the lanes, in bytes.
pub const CONTROL_BUF: usize = 1 << 20;
pub const BULK_BUF: usize = 4 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ParentToRaftd {
    /// The configuration in pieces, swapped in at ReconfEnd.  `peers` and
    /// `mounts` of the Conf are empty.
    ReconfConf(Conf),
    ReconfPeer(Peer),
    ReconfMount(Mount),
    ReconfEnd,
    /// One end of a socket pair to the fused of that mount.  [fd]
    SocketIpc {
        mount: MountId,
        lane: Lane,
    },
    /// The bound socket for peers; raftd listens.  [fd]
    Listener,
    /// The bound control socket; raftd listens.  [fd]
    ControlFd,
    /// Begin.
    Startup,
    LogVerbose(bool),
    /// The answer to a Ctl* message on behalf of that client.
    CtlResult {
        client: u32,
        result: CtlResult,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RaftdToParent {
    /// The store is open and the control socket answers.
    Ready,
    /// The new configuration is in force.
    ReconfDone,
    CtlReload {
        client: u32,
    },
    CtlStop {
        client: u32,
    },
    CtlLogVerbose {
        client: u32,
        verbose: bool,
    },
    CtlMount {
        client: u32,
        mount: CtlAttach,
    },
    CtlUmount {
        client: u32,
        mount: MountId,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ParentToFused {
    ReconfMount(Mount),
    /// One end of a socket pair to raftd.  [fd]
    SocketIpc {
        lane: Lane,
    },
    /// The FUSE device, mounted.  [fd]
    FuseFd,
    Startup,
    LogVerbose(bool),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FusedToParent {
    /// The kernel's INIT is answered; the mount serves.
    Ready,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FusedToRaftd {
    /// One request; every one but Release and Accessed is answered with Rep
    /// once.
    Req { id: ReqId, cred: Cred, op: FsOp },
    /// The descriptor of that inode's backing file is closed.
    RevokeAck { ino: InodeNo },
    /// After LockLost: nothing that was written under these locks is still on
    /// its way.
    LockLostAck { ino: InodeNo, owner: u64 },
    /// The request shall not wait for its lock any longer; it is answered as
    /// ever.
    CancelLock { id: ReqId, ino: InodeNo },
}

/// Inode numbers are those of the mount: its subtree's root is always 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsOp {
    /// Also for "." and "..".
    Lookup {
        parent: InodeNo,
        name: Vec<u8>,
    },
    /// The same, of no "." or "..", with a barrier before; and the inode
    /// outlives its names until a Release more.
    LookupHold {
        parent: InodeNo,
        name: Vec<u8>,
    },
    Getattr {
        ino: InodeNo,
    },
    Setattr {
        ino: InodeNo,
        set: SetAttr,
        /// It may be answered when it is queued: who made the file, and has not
        /// closed it yet, asks, and hears of a failure when he does.
        early: bool,
        /// For whose file the kernel took it, if it judged by that.
        owner: Option<u32>,
    },
    Readlink {
        ino: InodeNo,
    },
    /// Makes the file and opens it.  A file that is there already is Stale
    /// unless `excl`: the kernel then looks it up and opens it, with all that
    /// OPEN asks.
    Create {
        parent: InodeNo,
        name: Vec<u8>,
        mode: u32,
        /// Taken from `mode`, unless the directory has a default ACL.
        umask: u32,
        excl: bool,
    },
    /// `mode` with its type.
    Mknod {
        parent: InodeNo,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
        rdev: u32,
    },
    Mkdir {
        parent: InodeNo,
        name: Vec<u8>,
        mode: u32,
        umask: u32,
    },
    Symlink {
        parent: InodeNo,
        name: Vec<u8>,
        target: Vec<u8>,
    },
    Link {
        ino: InodeNo,
        parent: InodeNo,
        name: Vec<u8>,
    },
    Unlink {
        parent: InodeNo,
        name: Vec<u8>,
    },
    Rmdir {
        parent: InodeNo,
        name: Vec<u8>,
    },
    Rename {
        parent: InodeNo,
        name: Vec<u8>,
        new_parent: InodeNo,
        new_name: Vec<u8>,
        /// RENAME_NOREPLACE, RENAME_EXCHANGE.
        no_replace: bool,
        exchange: bool,
    },
    /// Counted: the inode outlives its names until as many Release.
    Open {
        ino: InodeNo,
        write: bool,
        /// By a LookupHold of the same call: no name need lead to it any more.
        held: bool,
    },
    /// Not answered.
    Release {
        ino: InodeNo,
    },
    Read {
        ino: InodeNo,
        offset: u64,
        size: u32,
    },
    /// The bytes ride behind, `len` of them.  Over the bulk lane it is answered
    /// by Accepted once raftd has it; then, over either, by Rep once it is
    /// applied.
    Write {
        ino: InodeNo,
        offset: u64,
        len: u32,
        /// Ignore `offset`; apply chooses the end of the file.
        append: bool,
        kill_priv: bool,
        /// The caller waits for Rep.
        sync: bool,
    },
    /// Answered when all that this node has queued for the inode is applied.
    Fsync {
        ino: InodeNo,
    },
    Readdir {
        ino: InodeNo,
        /// 0, or the `next` of the last entry seen.
        after: Cookie,
        /// Bytes of the kernel's buffer.
        size: u32,
        /// With attributes; each entry with some counts as a lookup.
        plus: bool,
    },
    Statfs,
    /// Answered with Data.
    Getxattr {
        ino: InodeNo,
        name: Vec<u8>,
    },
    /// Answered with Data: the names, each with a NUL behind it.
    Listxattr {
        ino: InodeNo,
    },
    /// The value rides behind, `len` bytes of it.  Answered with Attr.
    Setxattr {
        ino: InodeNo,
        name: Vec<u8>,
        len: u32,
        how: XattrHow,
        /// As Setattr has it.
        owner: Option<u32>,
    },
    /// Answered with Attr.
    Removexattr {
        ino: InodeNo,
        name: Vec<u8>,
        /// As Setattr has it.
        owner: Option<u32>,
    },
    Fallocate {
        ino: InodeNo,
        what: Fallocate,
    },
    /// From `offset` on, the first byte that is data or, with `hole`, that is
    /// not; what is behind the end is a hole.
    Seek {
        ino: InodeNo,
        offset: u64,
        hole: bool,
    },
    /// Not answered: the inode was read, and its time of access may be due.
    Accessed {
        ino: InodeNo,
    },
    /// Answered with Done when the lock is held: at once or with `wait` when
    /// the last one in its way is gone, however long that takes.
    Lock {
        ino: InodeNo,
        owner: u64,
        pid: u32,
        range: LockRange,
        kind: LockKind,
        wait: bool,
    },
    Unlock {
        ino: InodeNo,
        owner: u64,
        range: LockRange,
    },
    /// What is in the way of such a lock.
    TestLock {
        ino: InodeNo,
        owner: u64,
        range: LockRange,
        kind: LockKind,
    },
}

impl FsOp {
    /// Whether it is answered from what this node has, and changes nothing.
    pub fn only_looks(&self) -> bool {
        matches!(
            self,
            FsOp::Open { .. }
                | FsOp::Lookup { .. }
                | FsOp::LookupHold { .. }
                | FsOp::Getattr { .. }
                | FsOp::Readlink { .. }
                | FsOp::Read { .. }
                | FsOp::Readdir { .. }
                | FsOp::Statfs
                | FsOp::Getxattr { .. }
                | FsOp::Listxattr { .. }
                | FsOp::Seek { .. }
        )
    }
}

/// The whole is at most FUSED_FRAME_MAX.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RaftdToFused {
    /// A large WRITE, or a SETATTR that may be answered early, is queued
    /// and will be applied in order; `attr` as it will be, for a SETATTR.
    /// Rep follows.
    Accepted { id: ReqId, attr: Option<Attr> },
    /// The result, true as of the applied index `index`.  [fd with Opened]
    Rep {
        id: ReqId,
        index: u64,
        result: Result<FsRep, FsError>,
    },
    /// Drop cached attributes of the inode and, with `data`, its bytes from
    /// there on; a change of `index`.
    InvalInode {
        ino: InodeNo,
        data: Option<u64>,
        index: u64,
    },
    /// Drop the cached entry of that name.  `lost` is the inode that it named
    /// before: an OPEN of it that the kernel decided on by the old entry must
    /// be answered as stale, so that the kernel looks up again.
    InvalEntry {
        parent: InodeNo,
        name: Vec<u8>,
        lost: Option<InodeNo>,
        index: u64,
    },
    /// The inode has another owner.  The kernel judges by the one that it knows,
    /// without asking, until it looks the name up: it must do that.
    InvalOwner { ino: InodeNo },
    /// The directory is removed, and counts as open: Release, once the kernel has
    /// forgotten it.  Programs may work in it or have it open.
    Orphan { ino: InodeNo },
    /// Drop everything.
    InvalAll { index: u64 },
    /// The inode's contents now are in this backing file, read-only.  [fd]
    Backing { ino: InodeNo },
    /// Close the descriptor of the inode's backing file, then RevokeAck.
    Revoke { ino: InodeNo },
    /// Whether a quorum answers: without one, fail at once what needs it.
    Quorum(bool),
    /// Whether little room is left in some directory tree: who writes is answered
    /// by raftd.
    Short(bool),
    /// The owner's locks of the inode are lost; then LockLostAck.
    LockLost { ino: InodeNo, owner: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsRep {
    Done,
    Attr(Attr),
    /// Create, with the open counted; and everything else that makes a name.
    Entry {
        attr: Attr,
        created: bool,
    },
    /// The barrier has passed.  With a descriptor unless the contents are
    /// inline, the cap on descriptors is reached, or it is not a file.
    Opened {
        attr: Attr,
    },
    Target(Vec<u8>),
    /// The bytes ride behind, `len` of them; fewer than asked only at the end.
    Data {
        len: u32,
    },
    Written {
        offset: u64,
        attr: Attr,
    },
    Dirents {
        entries: Vec<Dirent>,
        eof: bool,
    },
    Statfs(Statfs),
    /// What Seek has found.
    Offset(u64),
    Lock(Option<LockInfo>),
}

/// Names of the variants as logs print them.
macro_rules! message {
    ($enum:ident, $channel:literal, { $($pat:pat => $name:literal),+ $(,)? }
     $(, fd: $fd:pat)? $(, bulk: $bulk:pat => $len:expr)?) => {
        impl Message for $enum {
            const CHANNEL: u32 = $channel;

            fn name(&self) -> &'static str {
                match self {
                    $($pat => $name),+
                }
            }

            $(fn wants_fd(&self) -> bool {
                matches!(self, $fd)
            })?

            $(fn bulk_len(&self) -> usize {
                match self {
                    $bulk => $len,
                    _ => 0,
                }
            })?
        }
    };
}

message!(ParentToRaftd, 1, {
    ParentToRaftd::ReconfConf(..) => "IMSG_RECONF_CONF",
    ParentToRaftd::ReconfPeer(..) => "IMSG_RECONF_PEER",
    ParentToRaftd::ReconfMount(..) => "IMSG_RECONF_MOUNT",
    ParentToRaftd::ReconfEnd => "IMSG_RECONF_END",
    ParentToRaftd::SocketIpc { .. } => "IMSG_SOCKET_IPC",
    ParentToRaftd::Listener => "IMSG_LISTENER",
    ParentToRaftd::ControlFd => "IMSG_CONTROLFD",
    ParentToRaftd::Startup => "IMSG_STARTUP",
    ParentToRaftd::LogVerbose(..) => "IMSG_LOG_VERBOSE",
    ParentToRaftd::CtlResult { .. } => "IMSG_CTL_RESULT",
}, fd: ParentToRaftd::SocketIpc { .. } | ParentToRaftd::Listener | ParentToRaftd::ControlFd);

message!(RaftdToParent, 2, {
    RaftdToParent::Ready => "IMSG_READY",
    RaftdToParent::ReconfDone => "IMSG_RECONF_DONE",
    RaftdToParent::CtlReload { .. } => "IMSG_CTL_RELOAD",
    RaftdToParent::CtlStop { .. } => "IMSG_CTL_STOP",
    RaftdToParent::CtlLogVerbose { .. } => "IMSG_CTL_LOG_VERBOSE",
    RaftdToParent::CtlMount { .. } => "IMSG_CTL_MOUNT",
    RaftdToParent::CtlUmount { .. } => "IMSG_CTL_UMOUNT",
});

message!(ParentToFused, 3, {
    ParentToFused::ReconfMount(..) => "IMSG_RECONF_MOUNT",
    ParentToFused::SocketIpc { .. } => "IMSG_SOCKET_IPC",
    ParentToFused::FuseFd => "IMSG_FUSE_FD",
    ParentToFused::Startup => "IMSG_STARTUP",
    ParentToFused::LogVerbose(..) => "IMSG_LOG_VERBOSE",
}, fd: ParentToFused::SocketIpc { .. } | ParentToFused::FuseFd);

message!(FusedToParent, 4, {
    FusedToParent::Ready => "IMSG_READY",
});

message!(FusedToRaftd, 5, {
    FusedToRaftd::Req { .. } => "IMSG_FS_REQ",
    FusedToRaftd::RevokeAck { .. } => "IMSG_FS_REVOKE_ACK",
    FusedToRaftd::LockLostAck { .. } => "IMSG_FS_LOCK_LOST_ACK",
    FusedToRaftd::CancelLock { .. } => "IMSG_FS_LOCK_CANCEL",
}, bulk: FusedToRaftd::Req { op: FsOp::Write { len, .. } | FsOp::Setxattr { len, .. }, .. }
   => *len as usize);

message!(RaftdToFused, 6, {
    RaftdToFused::Accepted { .. } => "IMSG_FS_ACCEPTED",
    RaftdToFused::Rep { .. } => "IMSG_FS_REP",
    RaftdToFused::InvalInode { .. } => "IMSG_FS_INVAL",
    RaftdToFused::InvalEntry { .. } => "IMSG_FS_INVAL_ENTRY",
    RaftdToFused::InvalOwner { .. } => "IMSG_FS_INVAL_OWNER",
    RaftdToFused::Orphan { .. } => "IMSG_FS_ORPHAN",
    RaftdToFused::InvalAll { .. } => "IMSG_FS_INVAL_ALL",
    RaftdToFused::Backing { .. } => "IMSG_FS_BACKING",
    RaftdToFused::Revoke { .. } => "IMSG_FS_REVOKE",
    RaftdToFused::Quorum(..) => "IMSG_QUORUM",
    RaftdToFused::Short(..) => "IMSG_FS_SHORT",
    RaftdToFused::LockLost { .. } => "IMSG_FS_LOCK_LOST",
}, fd: RaftdToFused::Rep { result: Ok(FsRep::Opened { .. }), .. } | RaftdToFused::Backing { .. },
   bulk: RaftdToFused::Rep { result: Ok(FsRep::Data { len }), .. } => *len as usize);
