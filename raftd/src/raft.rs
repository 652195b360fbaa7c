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

//! The adapter to openraft: its type configuration and settings.  Besides
//! this file only those that implement its traits name openraft: in store/
//! the log and the state machine, in peer/ the network.

use crate::fs::op::Command;
use crate::store::state_machine::StateMachine;
use common::fs::NodeId;
use openraft::{Config, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

openraft::declare_raft_types!(
    /// What openraft must know of our types.
    pub TypeConfig:
        D = Command,
        // Results reach the asking node through its own apply, not through
        // the leader's.
        R = (),
        NodeId = NodeId,
        Node = PeerNode,
);

/// A member as the log knows it; addresses come from dfsd.conf, which is the
/// authority on them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerNode;

impl fmt::Display for PeerNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("peer")
    }
}

pub type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type EntryPayload = openraft::alias::EntryPayloadOf<TypeConfig>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotData =
    <StateMachine as openraft::storage::RaftStateMachine<TypeConfig>>::SnapshotData;

const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION_MIN: Duration = Duration::from_millis(300);
const ELECTION_MAX: Duration = Duration::from_millis(500);
/// A voter that has acknowledged a leader votes for no other so long.  It
/// forgets that when it restarts, so a new raftd answers no peer before.
pub const LEASE: Duration = ELECTION_MAX;

/// openraft's settings where ours differ.
pub fn config(cluster: &str) -> Config {
    Config {
        cluster_name: cluster.into(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        election_timeout_min: ELECTION_MIN.as_millis() as u64,
        election_timeout_max: ELECTION_MAX.as_millis() as u64,
        enable_pre_vote: Some(true),
        // A leader that was restarted must not go on in its old term: others may
        // have entries of it which had not reached its own disk, and what it
        // logs now would have the same ids.
        enable_leader_restore: Some(false),
        // A follower's disk shall not wait for the leader's.
        broadcast_submitted_on_append: Some(true),
        // A batch is bounded by its bytes, in log_store.rs.
        max_payload_entries: 1024,
        // However far a peer is behind, the log is how it catches up.
        replication_lag_threshold: u64::MAX,
        // Checkpoints and purges are ours: see log_space.rs.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // A slow apply must never block the core, which sends heartbeats.
        state_machine_channel_size: Some(65536),
        ..Config::default()
    }
}

/// The first membership, the same on every node that starts empty.
pub fn members(nodes: &[common::conf::Peer]) -> BTreeMap<NodeId, PeerNode> {
    nodes.iter().map(|node| (node.id, PeerNode)).collect()
}

pub fn checked(config: Config) -> Result<Arc<Config>, openraft::ConfigError> {
    config.validate().map(Arc::new)
}
