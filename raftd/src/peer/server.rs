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

//! What this node answers its peers.  raftd only; openraft asserts on
//! impossible requests, so each is judged here before it sees it.

use super::frame::{self, Conn, FrameReader, FrameWriter, PeerMsg, Pong, Proposal};
use super::Peers;
use crate::barrier;
use crate::fs::space;
use crate::propose;
use crate::raft::{EntryPayload, Raft, TypeConfig, Vote};
use crate::store::wal::ENTRY_MAX;
use common::fs::NodeId;
use common::log_debug;
use futures_util::stream;
use futures_util::StreamExt;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult, VoteRequest};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, Mutex, Semaphore};
use tokio::time::{sleep, timeout};

/// More than any cluster's peers need, so that strangers cannot use up our
/// descriptors.
const CONNECTIONS_MAX: usize = 128;
/// Whoever has something to say to us says it more often; what is silent so
/// long has died without a word.
const IDLE_MAX: Duration = Duration::from_secs(120);
const REPLY_MAX: Duration = Duration::from_secs(10);
/// More than the log adds to a proposal.
const ENTRY_HEAD: usize = 512;
/// Appends read from one connection that openraft has not yet taken.
const APPENDS_MAX: usize = 16;

/// Accepts for ever.
pub async fn serve(listener: TcpListener, peers: Arc<Peers>, raft: Raft) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let (stream, addr) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors or a connection gone already: neither
                // may stop us, nor make us spin.
                log_debug!("accept: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (peers, raft) = (peers.clone(), raft.clone());
        tokio::spawn(async move {
            if let Err(e) = serve_peer(stream, peers, raft).await {
                log_debug!("peer {addr}: closed: {e}");
            }
            drop(slot);
        });
    }
}

async fn serve_peer(stream: TcpStream, peers: Arc<Peers>, raft: Raft) -> io::Result<()> {
    let Conn {
        reader,
        writer,
        peer,
    } = frame::accept(&peers.me, |id| peers.knows(id), stream).await?;
    let writer = Arc::new(Mutex::new(writer));
    Server {
        raft,
        peers,
        peer,
        reader,
        writer,
        appends: None,
    }
    .run()
    .await
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn stopped<E: std::fmt::Display>(e: E) -> io::Error {
    io::Error::other(e.to_string())
}

struct Server {
    raft: Raft,
    peers: Arc<Peers>,
    peer: NodeId,
    reader: FrameReader,
    writer: Arc<Mutex<FrameWriter>>,
    /// The way to a running Raft::stream_append, whose results another task
    /// writes back.
    appends: Option<mpsc::Sender<AppendEntriesRequest<TypeConfig>>>,
}

impl Server {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let read = timeout(IDLE_MAX, self.reader.read()).await;
            let Some(msg) = read.map_err(io::Error::from)?? else {
                return Ok(());
            };
            match msg {
                PeerMsg::Append(rpc) => self.append(rpc).await?,
                PeerMsg::Vote(rpc) => {
                    check_candidate(self.peer, &rpc)?;
                    self.may_vote()?;
                    let rep = self.raft.vote(rpc).await.map_err(stopped)?;
                    self.reply(PeerMsg::VoteRep(rep)).await?;
                }
                PeerMsg::PreVote(rpc) => {
                    check_candidate(self.peer, &rpc)?;
                    self.may_vote()?;
                    let rep = self.raft.pre_vote(rpc).await.map_err(stopped)?;
                    self.reply(PeerMsg::VoteRep(rep)).await?;
                }
                PeerMsg::TransferLeader(req) => {
                    check_leader(self.peer, req.from_leader())?;
                    let rep = self.raft.handle_transfer_leader(req).await;
                    let rep = rep.map_err(stopped)?;
                    self.reply(PeerMsg::TransferLeaderRep(rep)).await?;
                }
                PeerMsg::ReadIndex => {
                    let index = match self.peers.heard.from(self.peer) {
                        true => barrier::read_index(&self.raft, &self.peers).await,
                        false => None,
                    };
                    self.peers.waits(self.peer).reads();
                    self.reply(PeerMsg::ReadIndexRep(index)).await?;
                }
                PeerMsg::Propose(batch) => {
                    check_proposals(&batch)?;
                    self.peers.waits(self.peer).proposes();
                    if !propose::take(&self.raft, batch).await {
                        return self.reply(PeerMsg::NotLeader).await;
                    }
                }
                PeerMsg::Ping => {
                    let last_index = self.raft.metrics().borrow_watched().last_log_index;
                    let store = &self.peers.me.store;
                    let pong = Pong {
                        last_index: last_index.unwrap_or(0),
                        applied: store.agreed(),
                        floor: space::floor(&store.meta().read()).unwrap_or(0),
                    };
                    self.reply(PeerMsg::Pong(pong)).await?;
                }
                PeerMsg::AppendRep(_)
                | PeerMsg::Pong(_)
                | PeerMsg::VoteRep(_)
                | PeerMsg::TransferLeaderRep(_)
                | PeerMsg::ReadIndexRep(_)
                | PeerMsg::NotLeader => return Err(invalid("answer without a question")),
            }
        }
    }

    fn may_vote(&self) -> io::Result<()> {
        match self.peers.unmet(&self.raft).is_empty() {
            true => Ok(()),
            false => Err(invalid("no vote before all peers were met")),
        }
    }

    async fn reply(&self, msg: PeerMsg) -> io::Result<()> {
        reply(&self.writer, msg).await
    }

    async fn append(&mut self, rpc: AppendEntriesRequest<TypeConfig>) -> io::Result<()> {
        check_leader(self.peer, &rpc.vote)?;
        check_entries(&rpc, &self.peers)?;
        let appends = match &self.appends {
            Some(appends) => appends,
            None => self.appends.insert(self.start_appends()),
        };
        // Closed after a conflict or a higher vote, which was answered.
        appends.send(rpc).await.map_err(stopped)
    }

    fn start_appends(&self) -> mpsc::Sender<AppendEntriesRequest<TypeConfig>> {
        let (tx, rx) = mpsc::channel(APPENDS_MAX);
        let input = stream::unfold(
            rx,
            |mut rx| async move { rx.recv().await.map(|rpc| (rpc, rx)) },
        );
        let mut results = Box::pin(self.raft.stream_append(input));
        let writer = self.writer.clone();
        tokio::spawn(async move {
            while let Some(result) = results.next().await {
                let Ok(rep) = result else { return };
                if !write_result(&writer, rep).await {
                    return;
                }
            }
        });
        tx
    }
}

async fn write_result(writer: &Mutex<FrameWriter>, rep: StreamAppendResult<TypeConfig>) -> bool {
    let last = rep.is_err();
    reply(writer, PeerMsg::AppendRep(rep)).await.is_ok() && !last
}

async fn reply(writer: &Mutex<FrameWriter>, msg: PeerMsg) -> io::Result<()> {
    let write = async { writer.lock().await.write(msg).await };
    timeout(REPLY_MAX, write).await.map_err(io::Error::from)?
}

/// A leader speaks for itself, by a vote that a quorum has granted.
fn check_leader(peer: NodeId, vote: &Vote) -> io::Result<()> {
    match vote.committed && vote.leader_id.node_id == peer {
        true => Ok(()),
        false => Err(invalid("not the leader it says it is")),
    }
}

fn check_candidate(peer: NodeId, rpc: &VoteRequest<TypeConfig>) -> io::Result<()> {
    match !rpc.vote.committed && rpc.vote.leader_id.node_id == peer {
        true => Ok(()),
        false => Err(invalid("asks votes for another node")),
    }
}

/// The log takes no entry that is larger, and openraft stops when the log
/// refuses one.
fn check_proposals(batch: &[Proposal]) -> io::Result<()> {
    let fits = |p: &Proposal| {
        let head = postcard::experimental::serialized_size(p).unwrap_or(usize::MAX);
        head.saturating_add(p.payload.len as usize) < ENTRY_MAX - ENTRY_HEAD
    };
    match batch.iter().all(fits) {
        true => Ok(()),
        false => Err(invalid("proposal too large")),
    }
}

/// Indexes are consecutive and leaders do not go back, as in any log.
/// The members are those of dfsd.conf, on all nodes.
fn check_entries(rpc: &AppendEntriesRequest<TypeConfig>, peers: &Peers) -> io::Result<()> {
    let mut prev = rpc.prev_log_id;
    for entry in &rpc.entries {
        let id = entry.log_id;
        let want = prev.map_or(0, |p| p.index.saturating_add(1));
        let back = prev.is_some_and(|p| id.leader_id < p.leader_id);
        if id.index != want || back || id.leader_id > rpc.vote.leader_id {
            return Err(invalid("entries out of order"));
        }
        if let EntryPayload::Membership(members) = &entry.payload {
            let ours = |id| id == peers.me.node || peers.knows(id);
            if !members
                .voter_ids()
                .all(|id| ours(id) && members.get_node(&id).is_some())
            {
                return Err(invalid("members that dfsd.conf does not have"));
            }
        }
        prev = Some(id);
    }
    Ok(())
}
