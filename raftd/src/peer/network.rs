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

//! What openraft sends to another node: the implementation of its network
//! traits over connections of frame.rs.  raftd only.

use super::frame::{Conn, PeerMsg};
use super::{Peers, Waits};
use crate::payload::Payload;
use crate::raft::{EntryPayload, PeerNode, SnapshotData, TypeConfig, Vote};
use common::fs::NodeId;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout};

/// Requests and payload bytes under way to one peer: enough to fill a long
/// link, little enough that a slow peer costs no memory.
const INFLIGHT_MAX: usize = 64;
const INFLIGHT_BYTES: usize = 8 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The news that something is committed, and nothing else, waits so long for
/// entries to go with: most of the messages of one writer would be such.
const COMMIT_MAX: Duration = Duration::from_millis(5);
/// A peer that leaves a batch unanswered for so long is taken for cut off.
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes a Network for each peer.
pub struct NetworkFactory {
    pub peers: Arc<Peers>,
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: NodeId, _node: &PeerNode) -> Network {
        Network {
            peers: self.peers.clone(),
            target,
            conn: None,
        }
    }
}

/// The connection is lost with whatever was under way.
fn lost(e: io::Error) -> RpcError {
    NetworkError::new(&e).into()
}

/// One client of one peer; it connects when it has something to send.
pub struct Network {
    peers: Arc<Peers>,
    target: NodeId,
    /// Present only while no answer is outstanding on it.
    conn: Option<Conn>,
}

type Append = AppendEntriesRequest<TypeConfig>;
type RpcError = RPCError<TypeConfig>;
type AppendResults<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>;

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unexpected answer")
}

impl Network {
    async fn take_conn(&mut self) -> Result<Conn, RpcError> {
        if let Some(conn) = self.conn.take() {
            return Ok(conn);
        }
        match self.peers.connect(self.target, CONNECT_TIMEOUT).await {
            Ok(conn) => Ok(conn),
            Err(e) => Err(Unreachable::new(&e).into()),
        }
    }

    async fn call(&mut self, msg: PeerMsg, limit: Duration) -> Result<PeerMsg, RpcError> {
        let mut conn = self.take_conn().await?;
        let exchange = async {
            conn.writer.write(msg).await?;
            let rep = conn.reader.read().await?;
            rep.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        let rep = timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match rep {
            Ok(rep) => {
                self.conn = Some(conn);
                Ok(rep)
            }
            Err(e) => Err(lost(e)),
        }
    }
}

/// A run of pipelined appends on one connection.
struct Appends<'s, S> {
    net: &'s mut Network,
    conn: Conn,
    input: Option<S>,
    /// A request without entries, and until when it may wait for one with
    /// some, which then tells all that it would.
    held: Option<(Append, Instant)>,
    waits: Arc<Waits>,
    /// Payload bytes of each request without an answer.
    inflight: VecDeque<usize>,
    bytes: usize,
}

impl<S: Stream<Item = Append> + Unpin> Appends<'_, S> {
    /// The next answer; sends on while there is room.  None when all is
    /// answered and the input has ended.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        loop {
            let room = self.inflight.len() < INFLIGHT_MAX && self.bytes < INFLIGHT_BYTES;
            let waiting = !self.inflight.is_empty();
            if self.input.is_none() && !waiting && self.held.is_none() {
                return None;
            }
            tokio::select! {
                biased;
                rep = timeout(APPEND_TIMEOUT, self.conn.reader.read()), if waiting => {
                    let rep = rep.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                    return Some(self.answered(rep));
                }
                req = next_of(&mut self.input), if self.input.is_some() && room => {
                    let now = self.hold(req);
                    if let Some(Err(e)) = self.send(now).await {
                        return Some(Err(self.fail(e)));
                    }
                }
                () = held_back(&self.held, &self.waits), if self.held.is_some() => {
                    let now = self.held.take().map(|(req, _)| req);
                    if let Some(Err(e)) = self.send(now).await {
                        return Some(Err(self.fail(e)));
                    }
                }
            }
        }
    }

    /// What is to be sent now that the input has given this.  A request that
    /// was held is part of the next one: openraft takes the answer to that for
    /// an answer to both.
    fn hold(&mut self, req: Option<Append>) -> Option<Append> {
        let held = self.held.take();
        match req {
            Some(req) if req.entries.is_empty() && !self.waits.has_proposed() => {
                let until = held.map_or_else(|| Instant::now() + COMMIT_MAX, |(_, until)| until);
                self.held = Some((req, until));
                None
            }
            Some(req) => Some(req),
            None => {
                self.input = None;
                held.map(|(req, _)| req)
            }
        }
    }

    fn fail(&mut self, e: io::Error) -> RpcError {
        self.input = None;
        self.held = None;
        self.inflight.clear();
        lost(e)
    }

    async fn send(&mut self, req: Option<Append>) -> Option<io::Result<()>> {
        let req = req?;
        let bytes = payload_bytes(&req);
        self.inflight.push_back(bytes);
        self.bytes += bytes;
        self.net.peers.will_answer(commit_of(&req));
        let write = self.conn.writer.write(PeerMsg::Append(req));
        let written = timeout(APPEND_TIMEOUT, write).await;
        Some(written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
    }

    fn answered(
        &mut self,
        rep: io::Result<Option<PeerMsg>>,
    ) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
        let rep = match rep {
            Ok(Some(PeerMsg::AppendRep(rep))) => Ok(rep),
            Ok(Some(_)) => Err(unexpected()),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) => Err(e),
        };
        match rep {
            Ok(rep) => {
                self.bytes -= self.inflight.pop_front().unwrap_or(0);
                if rep.is_err() {
                    // openraft reads no further, and the peer closes.
                    self.input = None;
                    self.held = None;
                    self.inflight.clear();
                }
                Ok(rep)
            }
            Err(e) => Err(self.fail(e)),
        }
    }
}

/// Until what is held has waited long enough, or the peer waits for it.
async fn held_back(held: &Option<(Append, Instant)>, waits: &Waits) {
    let until = held.as_ref().map_or_else(Instant::now, |(_, until)| *until);
    tokio::select! {
        () = sleep_until(until.into()) => {}
        () = waits.begun() => {}
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}

fn commit_of(req: &Append) -> u64 {
    req.leader_commit.map_or(0, |id| id.index)
}

fn payload_bytes(req: &Append) -> usize {
    let of = |p: &Payload| p.len as usize;
    req.entries
        .iter()
        .map(|e| match &e.payload {
            EntryPayload::Normal(cmd) => of(&cmd.payload),
            _ => 0,
        })
        .sum()
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: Append,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        self.peers.will_answer(commit_of(&rpc));
        match self.call(PeerMsg::Append(rpc), APPEND_TIMEOUT).await? {
            PeerMsg::AppendRep(Ok(_)) => Ok(AppendEntriesResponse::Success),
            PeerMsg::AppendRep(Err(openraft::raft::StreamAppendError::HigherVote(vote))) => {
                Ok(AppendEntriesResponse::HigherVote(vote))
            }
            PeerMsg::AppendRep(Err(_)) => Ok(AppendEntriesResponse::Conflict),
            _ => Err(lost(unexpected())),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> Pin<Box<dyn Future<Output = Result<AppendResults<'s>, RpcError>> + Send + 's>>
    where
        S: Stream<Item = Append> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let conn = self.take_conn().await?;
            let waits = self.peers.waits(self.target);
            let appends = Appends {
                net: self,
                conn,
                input: Some(input),
                held: None,
                waits,
                inflight: VecDeque::new(),
                bytes: 0,
            };
            let results = stream::unfold(Some(appends), |appends| async {
                let mut appends = appends?;
                match appends.next().await {
                    Some(Ok(Ok(log_id))) => Some((Ok(Ok(log_id)), Some(appends))),
                    Some(failed) => Some((failed, None)),
                    None => {
                        appends.net.conn = Some(appends.conn);
                        None
                    }
                }
            });
            let results: AppendResults<'s> = Box::pin(results);
            Ok(results)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(PeerMsg::Vote(rpc), option.soft_ttl()).await? {
            PeerMsg::VoteRep(rep) => Ok(rep),
            _ => Err(lost(unexpected())),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        match self.call(PeerMsg::PreVote(rpc), option.soft_ttl()).await? {
            PeerMsg::VoteRep(rep) => Ok(rep),
            _ => Err(lost(unexpected())),
        }
    }

    /// There is no catch-up by snapshot: a peer whose log is gone stays
    /// unreachable, which openraft bears, and the operator is told.
    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotData>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        self.peers.gave_up(self.target);
        let e = io::Error::new(io::ErrorKind::Unsupported, "needs resync");
        Err(Unreachable::new(&e).into())
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let msg = PeerMsg::TransferLeader(req);
        match self.call(msg, option.soft_ttl()).await? {
            PeerMsg::TransferLeaderRep(rep) => Ok(rep),
            _ => Err(lost(unexpected())),
        }
    }
}
