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

//! What goes over the control socket: requests of dfsctl(8) and mount_dfs(8),
//! and records made for them; never internal state.  raftd answers; only root
//! may ask for more than is shown.
//!
//! A request is answered by records of its kind and End, or by Result alone.

use crate::conf::{Mount, MountId};
use crate::fs::{FsError, InodeNo, NodeId};
use crate::imsg::Message;
use crate::lock::{LockKind, LockRange};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Largest frame on the control socket.
pub const CTL_FRAME_MAX: usize = 16384;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtlReq {
    /// Summary, Peer for each node, Mount for each mount.
    ShowSummary,
    ShowPeers,
    ShowMounts,
    ShowLog,
    ShowLocks,
    // Those below are for root.
    LogVerbose(bool),
    Reload,
    Stop,
    Mount(CtlAttach),
    Umount(MountId),
    /// Quota for the tree that the path lies in, or for each that has one.
    /// Anybody may ask.
    ShowQuota(Option<String>),
    /// Limits of a directory tree, or of the whole for "/"; None stays as it
    /// is, 0 is no limit.
    SetQuota {
        path: String,
        bytes: Option<u64>,
        inodes: Option<u64>,
    },
    DropQuota(String),
    /// An exclusive lock of the whole file of that path of the tree, held until
    /// the client closes its end: Locked or Result, then LockLost if it is.
    Lock {
        path: String,
        /// The client's, to be shown.
        pid: u32,
        wait: bool,
    },
    /// The waiter with that number gets an error instead of his lock.
    CancelLock(u64),
}

impl CtlReq {
    /// Whether anybody who can connect may ask.
    pub fn is_show(&self) -> bool {
        matches!(
            self,
            CtlReq::ShowSummary
                | CtlReq::ShowPeers
                | CtlReq::ShowMounts
                | CtlReq::ShowLog
                | CtlReq::ShowQuota(..)
                | CtlReq::ShowLocks
        )
    }
}

/// A mount of dfsd.conf to attach, and what the client takes for granted of
/// it.  It is held against dfsd.conf and changes nothing: a mount that was
/// narrowed at run time would be a wider one after the loss of its fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlAttach {
    pub mount: MountId,
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
}

impl CtlAttach {
    /// As dfsd.conf has it, whatever that is.
    pub fn as_is(mount: MountId) -> CtlAttach {
        CtlAttach {
            mount,
            read_only: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            noatime: false,
        }
    }

    /// The first that is taken for granted and not so.
    pub fn wider(&self, conf: &Mount) -> Option<Narrow> {
        [
            (self.read_only, conf.read_only, Narrow::ReadOnly),
            (self.nosuid, conf.nosuid, Narrow::Nosuid),
            (self.nodev, conf.nodev, Narrow::Nodev),
            (self.noexec, conf.noexec, Narrow::Noexec),
            (self.noatime, conf.noatime, Narrow::Noatime),
        ]
        .into_iter()
        .find_map(|(want, is, narrow)| (want && !is).then_some(narrow))
    }
}

/// What makes a mount narrower; prints as dfsd.conf has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Narrow {
    ReadOnly,
    Nosuid,
    Nodev,
    Noexec,
    Noatime,
}

impl fmt::Display for Narrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Narrow::ReadOnly => "read only",
            Narrow::Nosuid => "nosuid",
            Narrow::Nodev => "nodev",
            Narrow::Noexec => "noexec",
            Narrow::Noatime => "noatime",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtlRep {
    Summary(CtlSummary),
    Peer(CtlPeer),
    Mount(CtlMount),
    Log(CtlLog),
    Lock(CtlLock),
    /// With the fencing number.
    Locked(u64),
    LockLost,
    /// No more records.
    End,
    Result(CtlResult),
    Quota(CtlQuota),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// Nothing is known of it.
    Unknown,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Unknown => "-",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlSummary {
    pub cluster: String,
    pub node: NodeId,
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Log indexes on this node.
    pub applied: u64,
    pub committed: u64,
    /// A majority answers the leader, and this node hears it.
    pub quorum: bool,
    /// This node has applied all that the cluster had committed when asked.
    pub current: bool,
    /// Seconds since this node last knew that it was; None: not since it started.
    pub age: Option<u64>,
    /// Why apply has stopped, if it has.
    pub alarm: Option<String>,
    /// Room of the tree in bytes and inodes, as all nodes agree.
    pub bytes: u64,
    pub bytes_free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerState {
    ThisNode,
    Up,
    Down,
    /// The log it needs is gone.
    NeedsResync,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PeerState::ThisNode => "this node",
            PeerState::Up => "up",
            PeerState::Down => "down",
            PeerState::NeedsResync => "needs resync",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlPeer {
    pub id: NodeId,
    /// Address and port.
    pub addr: String,
    pub descr: Option<String>,
    pub role: Role,
    /// Highest index known to be in its log; None when this node cannot know.
    pub matched: Option<u64>,
    pub lag: Option<u64>,
    /// Seconds in its present state.
    pub since: u64,
    pub state: PeerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountState {
    Detached,
    Starting,
    Serving,
}

impl fmt::Display for MountState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MountState::Detached => "detached",
            MountState::Starting => "starting",
            MountState::Serving => "serving",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlMount {
    pub id: MountId,
    pub point: String,
    pub subtree: String,
    pub read_only: bool,
    /// Open handles.
    pub open: u64,
    pub state: MountState,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlLog {
    /// First and last index in the log.
    pub first: u64,
    pub last: u64,
    pub flushed: u64,
    pub committed: u64,
    pub applied: u64,
    pub checkpoint: u64,
    /// No live peer needs what is below.
    pub floor: u64,
    pub segments: u64,
    pub spare: u64,
    /// Bytes of log in use, and the cap of dfsd.conf.
    pub bytes: u64,
    pub limit: u64,
    /// Since the start of raftd.
    pub groups: u64,
    pub flushes: u64,
    pub written: u64,
    pub checkpoints: u64,
}

/// What a directory tree takes, and may; 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlQuota {
    /// The directory, as a path of the tree.
    pub path: String,
    pub used_bytes: u64,
    pub limit_bytes: u64,
    pub used_inodes: u64,
    pub limit_inodes: u64,
    /// Some of what was there before the quota is not counted yet.
    pub counting: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtlLock {
    /// The fencing number of one that is held; of a waiter what cancels it.
    pub id: u64,
    pub ino: InodeNo,
    pub node: NodeId,
    /// On that node.
    pub pid: u32,
    pub range: LockRange,
    pub kind: LockKind,
    pub held: bool,
}

/// How an action ended.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtlResult {
    Ok,
    /// Only root may.
    Permission,
    /// The new dfsd.conf has errors; the old one stays.
    ConfigError,
    NoSuchMount,
    AlreadyMounted,
    NotMounted,
    /// Not as the client takes for granted.
    Wider(Narrow),
    /// The mount(2) or the start of fused failed; the log says how.
    MountFailed,
    Failed,
    /// The tree says no, or no quorum answers.
    Refused(FsError),
    /// One quota would be beneath another.
    NestedQuota,
    NoQuota,
    /// The lock was not given; why.
    Lock(FsError),
    NoSuchWaiter,
}

impl fmt::Display for CtlResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CtlResult::Wider(narrow) => {
                return write!(f, "not {narrow} in dfsd.conf; add: {narrow} yes")
            }
            CtlResult::Refused(e) => return e.fmt(f),
            CtlResult::NestedQuota => "lies in a tree with a quota, or has one beneath",
            CtlResult::NoQuota => "has no quota",
            CtlResult::Lock(error) => return write!(f, "{error}"),
            CtlResult::NoSuchWaiter => "nobody waits with that number",
            CtlResult::Ok => "ok",
            CtlResult::Permission => "need root privileges",
            CtlResult::ConfigError => "configuration not changed: see the log",
            CtlResult::NoSuchMount => "no such mount in dfsd.conf",
            CtlResult::AlreadyMounted => "already mounted",
            CtlResult::NotMounted => "not mounted",
            CtlResult::MountFailed => "mount failed: see the log",
            CtlResult::Failed => "failed: see the log",
        })
    }
}

impl Message for CtlReq {
    const CHANNEL: u32 = 7;

    fn name(&self) -> &'static str {
        match self {
            CtlReq::ShowSummary => "IMSG_CTL_SHOW_SUMMARY",
            CtlReq::ShowPeers => "IMSG_CTL_SHOW_PEER",
            CtlReq::ShowMounts => "IMSG_CTL_SHOW_MOUNT",
            CtlReq::ShowLog => "IMSG_CTL_SHOW_LOG",
            CtlReq::ShowLocks => "IMSG_CTL_SHOW_LOCK",
            CtlReq::Lock { .. } => "IMSG_CTL_LOCK",
            CtlReq::CancelLock(..) => "IMSG_CTL_LOCK_CANCEL",
            CtlReq::LogVerbose(..) => "IMSG_CTL_LOG_VERBOSE",
            CtlReq::Reload => "IMSG_CTL_RELOAD",
            CtlReq::Stop => "IMSG_CTL_STOP",
            CtlReq::Mount(..) => "IMSG_CTL_MOUNT",
            CtlReq::Umount(..) => "IMSG_CTL_UMOUNT",
            CtlReq::ShowQuota(..) => "IMSG_CTL_SHOW_QUOTA",
            CtlReq::SetQuota { .. } => "IMSG_CTL_SET_QUOTA",
            CtlReq::DropQuota(..) => "IMSG_CTL_DROP_QUOTA",
        }
    }
}

impl Message for CtlRep {
    const CHANNEL: u32 = 8;

    fn name(&self) -> &'static str {
        match self {
            CtlRep::Summary(..) => "IMSG_CTL_SHOW_SUMMARY",
            CtlRep::Peer(..) => "IMSG_CTL_SHOW_PEER",
            CtlRep::Mount(..) => "IMSG_CTL_SHOW_MOUNT",
            CtlRep::Log(..) => "IMSG_CTL_SHOW_LOG",
            CtlRep::Lock(..) => "IMSG_CTL_SHOW_LOCK",
            CtlRep::Locked(..) => "IMSG_CTL_LOCKED",
            CtlRep::LockLost => "IMSG_CTL_LOCK_LOST",
            CtlRep::End => "IMSG_CTL_END",
            CtlRep::Result(..) => "IMSG_CTL_RESULT",
            CtlRep::Quota(..) => "IMSG_CTL_SHOW_QUOTA",
        }
    }
}
