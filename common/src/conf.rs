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

//! The configuration as data: what dfsd.conf says after parsing, and the
//! defaults and limits of its options.  Read by dfsd, raftd and fused, sent in
//! pieces over imsg.  Never parses, never touches a file or a socket.

use crate::fs::NodeId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// What an option is when dfsd.conf does not say.
pub struct Defaults {
    pub port: u16,
    pub data: &'static str,
    pub socket: &'static str,
    pub lock_lease: Duration,
    pub log_limit: u64,
    pub reserve: u64,
    pub subtree: &'static str,
    pub read_only: bool,
    pub timeout: Duration,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub strict: bool,
    pub dirty: bool,
    pub local_lock: bool,
    pub async_close: bool,
    pub auto: bool,
}

/// The one place that knows them; dfsd.conf(5) is tested against it.
pub const DEFAULTS: Defaults = Defaults {
    port: 7400,
    data: "/var/db/dfsd",
    socket: "/var/run/dfsd.sock",
    lock_lease: Duration::from_secs(10),
    log_limit: 4 << 30,
    reserve: 256 << 20,
    subtree: "/",
    read_only: false,
    timeout: Duration::from_secs(30),
    nosuid: true,
    nodev: true,
    noexec: false,
    noatime: false,
    strict: false,
    dirty: false,
    local_lock: false,
    async_close: false,
    auto: true,
};

/// The configuration file, when no other is named.
pub const CONF_FILE: &str = "/etc/dfsd.conf";

pub const NODE_RANGE: RangeInclusive<u64> = 1..=65535;
pub const PORT_RANGE: RangeInclusive<u64> = 1..=65535;
/// Seconds.
pub const TIMEOUT_RANGE: RangeInclusive<u64> = 1..=3600;
/// Seconds.
pub const MAXAGE_RANGE: RangeInclusive<u64> = 1..=31536000;
/// Seconds.  The least outlives the choice of a new leader.
pub const LOCK_LEASE_RANGE: RangeInclusive<u64> = 5..=3600;
/// Bytes.  The least leaves room for a few segments of the log.
pub const LOG_LIMIT_RANGE: RangeInclusive<u64> = 256 << 20..=16 << 40;
/// Bytes.  The least holds what a node must still write to free its log.
pub const RESERVE_RANGE: RangeInclusive<u64> = 64 << 20..=1 << 40;
pub const VOTERS_MAX: usize = 7;
pub const MOUNTS_MAX: usize = 32;
/// Longest cluster name and peer description, in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest path in bytes; PATH_MAX of OpenBSD without its NUL.
pub const PATH_MAX: usize = 1023;
/// Longest socket path in bytes; sun_path of OpenBSD without its NUL.
pub const SOCKET_PATH_MAX: usize = 103;

/// The number of a mount: its place among the mounts of dfsd.conf, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MountId(pub u32);

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All of dfsd.conf.  The parser guarantees what the fields say here; peers and
/// mounts travel in messages of their own and are then empty in this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conf {
    pub cluster: String,
    /// This node; one of `peers`.
    pub node: NodeId,
    /// Where peers reach this node; may be the unspecified address.
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub socket: PathBuf,
    /// For how long this node has its locks without an answer of the leader;
    /// whole seconds.
    pub lock_lease: Duration,
    /// Bytes of log kept for a dead peer before it is given up.
    pub log_limit: u64,
    /// Bytes on the disk of `data` that are never used.
    pub reserve: u64,
    /// Every node of the cluster, this one too; ids and addresses are unique.
    pub peers: Vec<Peer>,
    /// In the order of their ids; no point is inside another.
    pub mounts: Vec<Mount>,
}

impl Conf {
    pub fn peer(&self, id: NodeId) -> Option<&Peer> {
        self.peers.iter().find(|p| p.id == id)
    }

    pub fn mount(&self, id: MountId) -> Option<&Mount> {
        self.mounts.iter().find(|m| m.id == id)
    }
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub id: NodeId,
    pub addr: SocketAddr,
    pub descr: Option<String>,
}

/// Where the tree, or a directory of it, is attached on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub id: MountId,
    /// The directory of this machine that it covers.
    pub point: PathBuf,
    /// The directory of the tree that is seen there.
    pub subtree: PathBuf,
    pub read_only: bool,
    /// Within this every request is answered, if only by an error.
    pub timeout: Duration,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    /// Reading leaves no trace.
    pub noatime: bool,
    /// Whatever is looked at is as new as the cluster; nothing is cached.
    pub strict: bool,
    /// Whatever is looked at is what this node has, also without a quorum.
    pub dirty: bool,
    /// With `dirty`: so long after this node last heard of the others.  None:
    /// however long.
    pub maxage: Option<Duration>,
    /// Locks are those of this machine alone.
    pub local_lock: bool,
    /// close(2) does not wait.
    pub async_close: bool,
    /// Attached at start, not only when mount_dfs(8) asks.
    pub auto: bool,
}

/// None when it is not a number of bytes, Some(None) when it is too large.
pub fn parse_size(text: &str) -> Option<Option<u64>> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)?.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(
        digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_survive_the_wire() {
        let conf = Conf {
            cluster: "prod".into(),
            node: NodeId(65535),
            listen: "[2001:db8::1]:7400".parse().unwrap(),
            data: DEFAULTS.data.into(),
            socket: DEFAULTS.socket.into(),
            lock_lease: DEFAULTS.lock_lease,
            log_limit: DEFAULTS.log_limit,
            reserve: DEFAULTS.reserve,
            peers: vec![Peer {
                id: NodeId(65535),
                addr: "192.0.2.1:1".parse().unwrap(),
                descr: Some("\u{fc}".into()),
            }],
            mounts: vec![Mount {
                id: MountId(0),
                point: "/mnt/a b".into(),
                subtree: DEFAULTS.subtree.into(),
                read_only: DEFAULTS.read_only,
                timeout: DEFAULTS.timeout,
                nosuid: DEFAULTS.nosuid,
                nodev: DEFAULTS.nodev,
                noexec: DEFAULTS.noexec,
                noatime: DEFAULTS.noatime,
                strict: DEFAULTS.strict,
                dirty: DEFAULTS.dirty,
                maxage: Some(Duration::from_secs(5)),
                local_lock: DEFAULTS.local_lock,
                async_close: DEFAULTS.async_close,
                auto: DEFAULTS.auto,
            }],
        };
        let bytes = postcard::to_stdvec(&conf).unwrap();
        assert_eq!(postcard::from_bytes::<Conf>(&bytes).unwrap(), conf);
    }
}
